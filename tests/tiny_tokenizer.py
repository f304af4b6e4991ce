"""A tokenizer of T5's kind with 37 pieces, in the file that stands beside text encoders."""

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

MARKS, LETTERS, WORDS = ("<pad>", "</s>", "<unk>"), "abcdefghijklmnopqrstuvwxyzABC", ("▁", "▁a", "▁red", "▁cat", "▁two")
PIECES = [*((mark, 0.0) for mark in MARKS), *((letter, -4.0) for letter in LETTERS), *((word, -2.0) for word in WORDS)]


def write_tokenizer(folder):
    """Path of a new `tokenizer.json` in the folder, as transformers writes it of a T5's."""
    tokenizer = Tokenizer(models.Unigram(PIECES, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path
