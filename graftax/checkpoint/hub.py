"""Addresses hf://ORG/NAME where a path is expected: models, VAEs, text encoders and data from the Hugging Face Hub.

    hf://ORG/NAME                     a repository, of a pipeline the part that is wanted
    hf://ORG/NAME@REVISION            of a branch, a tag or a commit; a "/" in it is written %2F
    hf://ORG/NAME/transformer         a folder in it
    hf://ORG/NAME/model.pth           a file in it

The package huggingface_hub (extra `hub`) fetches into its own cache and says where: HF_HOME, HF_ENDPOINT, HF_TOKEN and
HF_HUB_OFFLINE mean what they mean to it, read when it is imported. What has been fetched is read as any other local file;
nothing of a repository is ever executed.

Each host fetches into a cache of its own (or one that hosts share); of several processes that want the same file of one
cache, the library lets one fetch it and the others wait.
"""

from __future__ import annotations

import contextlib
import glob
import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tqdm.auto import tqdm

from graftax.checkpoint.files import storage_trouble
from graftax.checkpoint.hugging_face import CONFIG
from graftax.checkpoint.members import shown
from graftax.checkpoint.store import INDEX
from graftax.errors import BadInput, did_you_mean
from graftax.models.arguments import as_path
from graftax.progress import Progress

SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pth", ".pt")
"""Of weights. Where one set of weights is there in several forms, the first of these is fetched."""

TEXTS = (".json", ".model", "merges.txt")
"""What stands beside weights: configs, indices of shards, `tokenizer.json`, `spiece.model`, a CLIP tokenizer's merges."""

MB = 10**6

LISTED = 5
"""Files that an error message names."""

_ADDRESS = re.compile(r"hf:/+(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^/@]+))?(/(?P<inner>[^@]*))?")
_WEIGHTS = re.compile(rf"(?P<stem>.+?)(-\d+-of-\d+)?(?P<suffix>{'|'.join(map(re.escape, SUFFIXES))})(\.index\.json)?")
_CACHED = re.compile(r".*/models--(?P<org>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})(?P<inner>/.*)?")


class Absent(BadInput):
    """A repository is there, and what an address asks of it is not."""


@dataclass(frozen=True)
class Address:
    """What hf://ORG/NAME@REVISION/INNER names.

    Attributes:
        repo: ORG/NAME.
        revision: branch, tag or commit; None for the main branch.
        inner: file or folder in it, "" for the whole.
    """

    repo: str
    revision: str | None
    inner: str

    def __str__(self) -> str:
        revision = f"@{self.revision.replace('/', '%2F')}" if self.revision else ""
        return f"hf://{self.repo}{revision}{self.inner and '/' + self.inner}"


def is_hub(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is an address hf://, or what `Path` makes of one."""
    return as_path(path).startswith("hf:/")


def fetched(path: str | os.PathLike[str], *parts: str, whole: bool = False, weights: bool = True) -> Path:
    """`path` itself, or where the files of an address hf:// are on this machine, fetched if they were not.

    Of a folder with a model in it (`config.json` or `graftax.json`) these are its weights, in the first of the forms
    `SUFFIXES`, and the small files beside them; of a pipeline's, likewise of those of its folders `parts` that it has
    ("transformer"), and `model_index.json`; of a file, it alone. `whole`: all that is in the folder and below it, for data.
    Without `weights`: of all these the small files alone, which say what is there.

    Raises `Absent` where the repository has no such thing, else `BadInput`: no such repository or revision, one that asks
    for a login, no way to it and not in the cache, the library missing.
    """
    if not is_hub(path):
        return Path(path)
    address = _parsed(path)
    with _explained(address):
        import huggingface_hub as hub

        asked = {"revision": address.revision, "local_files_only": hub.is_offline_mode()}
        commit = hub.HfApi().resolve_revision(address.repo, **asked).resolved
        sizes = _sizes(address, commit)
        wanted = _below(address, sizes) if whole else _wanted(address, sizes, parts)
        chosen = {name: sizes[name] for name in wanted if weights or name.endswith(TEXTS)}
        folder = _download(address, commit, chosen)
    return folder / address.inner


def pinned(path: Path) -> str:
    """The name of a file or folder; of one that was `fetched` its address with the commit."""
    if match := _CACHED.fullmatch(path.as_posix()):
        return f"hf://{match['org']}/{match['name']}@{match['commit']}{match['inner'] or ''}"
    return path.name


def called(path: Path) -> str:
    """The name of a file or folder; of the folder of a whole repository that was `fetched` the repository's."""
    match = _CACHED.fullmatch(path.as_posix())
    return match["name"] if match and not match["inner"] else path.name


def _parsed(path: str | os.PathLike[str]) -> Address:
    match = _ADDRESS.fullmatch(text := as_path(path))
    if match is None or match["repo"].startswith(("datasets/", "spaces/")):
        raise BadInput(f"{text}: expected a model's address hf://ORG/NAME, hf://ORG/NAME@REVISION or hf://ORG/NAME/FOLDER")
    inner = posixpath.normpath((match["inner"] or "").strip("/"))  # "." of nothing
    if ".." in inner.split("/"):
        raise BadInput(f"{text}: leads out of the repository, expected a file or folder in it")
    return Address(match["repo"], match["revision"] and unquote(match["revision"]), "" if inner == "." else inner)


# --- Which files ---------------------------------------------------------------------------------------------------------


def _sizes(address: Address, commit: str) -> dict[str, int]:
    """Bytes of every file of a repository by name: as listed before, or by the Hub; else of what is in the cache."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    with contextlib.suppress(errors.CachedRepoTreeNotFoundError):
        return {file.path: file.size for file in hub.get_cached_repo_tree(address.repo, revision=commit)}
    try:
        entries = hub.HfApi().list_repo_tree(address.repo, recursive=True, revision=commit)
        return {entry.path: entry.size for entry in entries if isinstance(entry, hub.hf_api.RepoFile)}
    except (errors.OfflineModeIsEnabled, errors.HTTPError):  # pyright: ignore[reportPrivateImportUsage]
        folder = Path(hub.snapshot_download(address.repo, revision=commit, local_files_only=True))
        return {file.relative_to(folder).as_posix(): file.stat().st_size for file in folder.rglob("*") if file.is_file()}


def _wanted(address: Address, names: Mapping[str, int], parts: tuple[str, ...]) -> list[str]:
    """The files of a model: one, or those of a folder that holds one, or those of the `parts` of a pipeline with the texts
    above them, which say what its parts are."""
    if address.inner in names:
        return [address.inner]
    folders = [address.inner, *(posixpath.join(address.inner, part) for part in parts)]
    own, *others = ([name for name in names if posixpath.dirname(name) == folder] for folder in folders)
    if {CONFIG, INDEX} & {posixpath.basename(name) for name in own}:
        return _model_files(own)
    if not any(others):
        raise Absent(f"{address}: {_missing(address, names, parts)}")
    return [name for name in own if name.endswith(TEXTS)] + [name for part in others for name in _model_files(part)]


def _model_files(names: list[str]) -> list[str]:
    """Of the files of one folder the weights in the best form that each is there in, and the texts.

    Names with a variant in them ("model.fp16.safetensors") are left where the plain ones are there.
    """
    weights = {name: match for name in names if (match := _WEIGHTS.fullmatch(posixpath.basename(name)))}
    sets = {name: match["stem"].replace("pytorch_model", "model") for name, match in weights.items()}
    plain = {name: stem for name, stem in sets.items() if "." not in stem or stem.partition(".")[0] not in sets.values()}
    there = {(stem, weights[name]["suffix"]) for name, stem in plain.items()}
    best = {stem: next(suffix for suffix in SUFFIXES if (stem, suffix) in there) for stem in plain.values()}
    chosen = [name for name, stem in plain.items() if weights[name]["suffix"] == best[stem]]
    return chosen + [name for name in names if name.endswith(TEXTS) and name not in weights]


def _below(address: Address, names: Mapping[str, int]) -> list[str]:
    """All files of a folder and below it, or one file."""
    inside = f"{address.inner}/" if address.inner else ""
    if not (found := [name for name in names if name == address.inner or name.startswith(inside)]):
        raise Absent(f"{address}: {_missing(address, names, ())}")
    return found


def _missing(address: Address, names: Mapping[str, int], parts: tuple[str, ...]) -> str:
    """What to say of an address whose repository does not have it."""
    weights = [name for name in names if _WEIGHTS.fullmatch(posixpath.basename(name)) and not name.endswith(".json")]
    if address.inner and not any(name.startswith(f"{address.inner}/") for name in names):
        folders = {posixpath.dirname(name) for name in names} - {""}
        return f"no such file or folder in the repository{did_you_mean(address.inner, [*folders, *weights])}"
    places = " or ".join([CONFIG, INDEX, *(f"{part}/" for part in parts)])
    below = [name for name in weights if name.startswith(address.inner)]
    more = f", or one of its files by name: {_listed(below)}" if below else ""
    return f"no model in it, expected {places}{more}"


def _listed(names: Sequence[str]) -> str:
    """The first few names, which strangers have given, on one line."""
    return ", ".join(map(shown, sorted(names)[:LISTED])) + (f" and {len(names) - LISTED} more" if names[LISTED:] else "")


# --- To this machine -----------------------------------------------------------------------------------------------------


def _download(address: Address, commit: str, sizes: Mapping[str, int]) -> Path:
    """The repository's folder in the cache, with the files named in `sizes` in it."""
    import huggingface_hub as hub

    exact = [glob.escape(name) for name in sizes]
    new = [name for name in sizes if not isinstance(hub.try_to_load_from_cache(address.repo, name, revision=commit), str)]
    total = -(-sum(sizes[name] for name in new) // MB)
    with Progress(total, f"fetch {address}", unit="MB", show=bool(total)) as progress:
        folder = hub.snapshot_download(
            address.repo, revision=commit, allow_patterns=exact, tqdm_class=_reporting_to(progress)
        )
        progress.advance(total - progress.done)
    return Path(folder)


def _reporting_to(progress: Progress) -> type[tqdm]:
    """Bars for the library, which tells several of them of the same bytes, that show nothing and advance `progress`."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs, disable=True)
            self.bytes, self.of_bytes = 0, kwargs.get("unit") == "B"

        def update(self, n: float | None = 1) -> None:
            with self.get_lock():  # files come in threads
                self.bytes += int(n or 0)
                if self.of_bytes and (more := min(self.bytes // MB, progress.total) - progress.done) > 0:
                    progress.advance(more)

    return Bar


@contextlib.contextmanager
def _explained(address: Address) -> Iterator[None]:
    """What the library raises, as `BadInput` of one line."""
    try:
        from huggingface_hub import constants, errors
    except ImportError:
        raise BadInput(f"{address}: needs the package huggingface_hub, expected: pip install 'graftax[hub]'") from None
    try:
        yield
    except (
        errors.HTTPError, errors.RevisionResolutionError, errors.LocalEntryNotFoundError,  # pyright: ignore
        errors.FileMetadataError, errors.HFValidationError, errors.OfflineModeIsEnabled,
    ) as error:  # fmt: skip
        raise BadInput(f"{address}: {_reason(address, error)}") from error
    except OSError as error:
        if not (trouble := storage_trouble(error)):
            raise
        raise BadInput(f"{address}: the cache {constants.HF_HUB_CACHE} cannot be written ({trouble})") from error


def _reason(address: Address, error: BaseException) -> str:
    """Why nothing comes, in few words."""
    from huggingface_hub import constants, errors, is_offline_mode

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    status = [one.response.status_code for one in chain if isinstance(one, errors.HfHubHTTPError)]
    if any(isinstance(one, errors.GatedRepoError) for one in chain) or 403 in status:
        return "gated, expected that its page has given you access and that you are logged in: `hf auth login`"
    if any(isinstance(one, errors.RevisionNotFoundError) for one in chain):
        return f"no such revision of {address.repo}"
    if any(isinstance(one, errors.RepositoryNotFoundError) for one in chain) or 401 in status:
        return "no such repository at the Hub; a private one expects that you are logged in: `hf auth login`"
    if any(isinstance(one, errors.HFValidationError) for one in chain):
        return "no name of a repository, expected ORG/NAME"
    if is_offline_mode():
        return f"not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set"
    what = f"answers {status[0]}" if status else f"cannot be reached ({type(chain[-1]).__name__})"
    return f"not in the cache, and the Hub at {constants.ENDPOINT} {what}"
