"""The work behind the verbs that train: stages, whole experiments, what a run leaves in its folder."""
