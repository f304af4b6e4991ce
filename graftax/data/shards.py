"""Sets in shards: ArrayRecord files and the `manifest.json` of them, written so that a kill costs one shard at most.

The manifest is written twice. The first, without `shards`, is the plan: whoever continues an interrupted writing checks that
it is the same. Each shard is described in a file of its own as it is finished; the last one collects them into the final
manifest, sealed with a checksum. A shard, then its description, are written whole or not at all. Shard i belongs to process
i modulo the number of processes.

Latent sets (`graftax.data.latents`) and text stores (`graftax.data.text.store`) are such sets.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from graftax.checkpoint.files import made, remove_strays, replacing, sha256, storage_trouble
from graftax.checkpoint.lock import FILE as LOCK
from graftax.errors import BadInput

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """One file of a set.

    Attributes:
        file: its name.
        bytes: its size.
        sha256: of its contents.
        labels: the class of each of its records; () in sets without classes.
        captions: numbers of each record's captions in a text store; () in sets without text.
        lengths: tokens of each of its records; () in sets of other things than text.
    """

    file: str
    bytes: int
    sha256: str
    labels: tuple[int, ...] = ()
    captions: tuple[tuple[int, ...], ...] = ()
    lengths: tuple[int, ...] = ()

    def to_tree(self) -> dict[str, Any]:
        """Fields by name, without those that are ()."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value != ()}


class ShardedManifest:
    """What is in a set. Base of dataclasses, which must have the fields `count` (records), `shard_size` (records per shard)
    and `shards`, None until all of them are there.

    Attributes:
        format: name and version of the kind of set.
        what: such a set is called: "latent set".
        stem: what the shards' names begin with.
        verb: the command that writes, continues and repairs such sets.
        free: fields in which a set may differ from the command that continues it: contents count, not what they are called.
        later: fields that sets of this format did not always have; left out of the file where they are None.
        beside: what names of other files and folders of the set begin with.
    """

    format: ClassVar[str]
    what: ClassVar[str]
    stem: ClassVar[str]
    verb: ClassVar[str]
    free: ClassVar[tuple[str, ...]] = ("shards",)
    later: ClassVar[tuple[str, ...]] = ()
    beside: ClassVar[tuple[str, ...]] = ()
    count: int
    shard_size: int
    shards: tuple[Shard, ...] | None

    @property
    def contents(self) -> str:
        """What the set holds, in words: "60 latents (8, 8, 4)"."""
        raise NotImplementedError

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all shards, whether or not they are there."""
        total = -(-self.count // self.shard_size)
        return tuple(f"{self.stem}-{i:05d}-of-{total:05d}.array_record" for i in range(total))

    def span(self, shard: int) -> range:
        """The records of one shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))

    def to_json(self) -> str:
        """JSON text, with a checksum over all of it."""
        fields = dataclasses.asdict(self)  # type: ignore[call-overload]
        fields = {name: value for name, value in fields.items() if value is not None or name not in self.later}
        fields["shards"] = None if self.shards is None else [shard.to_tree() for shard in self.shards]
        tree = {"format": self.format, **fields}
        return json.dumps({**tree, "checksum": _checksum(tree)}, separators=(",", ":")) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`. Raises `ValueError` on other text, or where the checksum does not fit."""
        tree = json.loads(text)
        if not isinstance(tree, dict) or tree.get("format") != cls.format:
            raise ValueError(f"expected the format {cls.format!r}")
        if tree.pop("checksum", None) != _checksum(tree):
            raise ValueError("its checksum does not fit")
        del tree["format"]
        return cls.from_tree(frozen(tree))

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> Self:
        """The manifest with these fields, shards as `Shard.to_tree` gives them. Raises `TypeError` on others."""
        shards = tree.pop("shards")
        return cls(**{**tree, "shards": None if shards is None else tuple(Shard(**shard) for shard in shards)})

    @property
    def sealed(self) -> tuple[Shard, ...]:
        """The shards of a finished set."""
        assert self.shards is not None, "finished"
        return self.shards


def frozen(tree: Any) -> Any:
    """A JSON value with tuples in place of its lists."""
    if isinstance(tree, dict):
        return {name: frozen(value) for name, value in tree.items()}
    return tuple(map(frozen, tree)) if isinstance(tree, list | tuple) else tree


M = TypeVar("M", bound=ShardedManifest)


def read_sharded(folder: Path, *kinds: type[M]) -> M:
    """The manifest of a set of one of `kinds`, finished or not. Raises `BadInput` where it is missing or damaged."""
    what = kinds[0].what
    try:
        text = (folder / MANIFEST).read_text()
        found = next((kind for kind in kinds if f'"{kind.format}"' in text[:100]), kinds[0])
        return found.from_json(text)
    except (FileNotFoundError, NotADirectoryError):
        verbs = " or ".join(dict.fromkeys(f"`{kind.verb}`" for kind in kinds))
        raise BadInput(f"{what} {folder}: no {MANIFEST} in it, expected a folder that {verbs} wrote") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadInput(f"{what} {folder}: {MANIFEST} is damaged ({error})") from None


def is_set(folder: str | Path) -> bool:
    """Whether `folder` holds a set in shards, finished or not."""
    return (Path(folder) / MANIFEST).is_file()


# --- Reading -------------------------------------------------------------------------------------------------------------


def open_rows(folder: Path, manifest: ShardedManifest) -> Any:
    """The records (bytes) of a finished set, at random access. Raises `BadInput` where it is unfinished, or a shard is
    missing or of another length.

    Damage within a shard is found when its record is read, and all of it by the same command that wrote the set.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    what, repair = manifest.what, f"repair it with the same `{manifest.verb}`"
    if manifest.shards is None:
        there = sum((folder / name).exists() for name in manifest.files)
        raise BadInput(f"{what} {folder}: {there} of {len(manifest.files)} shards, finish with the same `{manifest.verb}`")
    for shard in manifest.shards:
        path = folder / shard.file
        found = path.stat().st_size if path.is_file() else None
        if found != shard.bytes:
            state = "missing" if found is None else f"{found} bytes, expected {shard.bytes}"
            raise BadInput(f"{what} {folder}: {shard.file} is {state}; {repair}")
    rows = ArrayRecordDataSource([str(folder / shard.file) for shard in manifest.shards])
    if len(rows) != manifest.count:
        raise BadInput(f"{what} {folder}: {len(rows)} records, expected {manifest.count}; {repair}")
    return rows


def fetch(rows: Any, numbers: Iterable[int], folder: Path, manifest: ShardedManifest) -> list[bytes]:
    """The records `numbers` of what `open_rows` opened. Raises `BadInput` naming the folder where one is damaged."""
    try:
        return rows.__getitems__([int(i) for i in numbers])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{manifest.what} {folder}: cannot be read ({reason}); repair it with the same `{manifest.verb}`"
        ) from None


# --- Writing -------------------------------------------------------------------------------------------------------------


def remove_set(folder: Path, kind: type[ShardedManifest], leads: bool = True) -> None:
    """Remove the set of that kind in a folder, if one is there, and nothing else. All processes call it, one `leads`."""
    if leads and is_set(folder):
        for path in folder.iterdir():
            if path.name != LOCK and not _is_foreign(path.name, kind):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    together("old set removed")


def begin(folder: Path, plan: ShardedManifest, beside: Mapping[str, str] | None = None) -> Path:
    """`folder`, holding this plan or a set made by it. Raises `BadInput` where it holds something else.

    `beside`: texts of further files that belong to the plan, by name.
    """
    if is_set(folder):
        found = read_sharded(folder, type(plan))
        for field in dataclasses.fields(plan):  # type: ignore[arg-type]
            ours, theirs = getattr(plan, field.name), getattr(found, field.name)
            if field.name not in plan.free and ours != theirs:
                name = field.name
                if isinstance(ours, dict) and isinstance(theirs, dict):  # its first entry that differs
                    name = next(key for key in ours | theirs if ours.get(key) != theirs.get(key))
                    ours, theirs = ours.get(name), theirs.get(name)
                there, here = (str(value)[:80] for value in (theirs, ours))
                raise BadInput(f"{folder}: a {plan.what} of {name} {there}, expected {here}, or another folder")
    elif folder.is_file() or (folder.is_dir() and any(_is_foreign(path.name, type(plan)) for path in folder.iterdir())):
        # Other processes may be at this very point, so what they write here does not count.
        raise BadInput(f"{folder}: holds something else, expected a new folder, an empty one or a {plan.what}")
    with made(folder):
        for name, text in (beside or {}).items():
            _keep(folder / name, text)
        if not is_set(folder):
            _keep(folder / MANIFEST, plan.to_json())
    return folder


def missing_shards(folder: Path, plan: ShardedManifest, process_index: int, process_count: int) -> tuple[range, list[int]]:
    """This process's shards, and those of them that are not there, or not as they were described."""
    own = range(process_index, len(plan.files), process_count)
    return own, [i for i in own if not is_sound(folder, described(folder, plan, i))]


def write_described(folder: Path, name: str, records: Iterable[np.ndarray], facts: Mapping[str, Sequence[Any]]) -> None:
    """Write one shard, then the file that describes it.

    `facts`, fields of `Shard` that have an entry for each record, are complete once `records` is at its end.
    """
    remove_strays(folder / name)
    with replacing(folder / name) as temporary:
        write_shard(temporary, records)
        plain = {field: frozen(list(values)) for field, values in facts.items()}
        shard = Shard(name, temporary.stat().st_size, sha256(temporary), **plain)
    with replacing(_description(folder, name)) as temporary:
        temporary.write_text(json.dumps(shard.to_tree()))


def write_shard(path: Path, records: Iterable[np.ndarray]) -> None:
    """Write arrays, little-endian, to an ArrayRecord file. The same arrays give the same bytes.

    Raises `BadInput` where the file cannot be written to its end.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    with _writing(path):
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")  # one record a chunk: they are read at random
    for record in records:
        with _writing(path):
            writer.write(np.ascontiguousarray(record).tobytes())
    with _writing(path):
        writer.close()


def described(folder: Path, plan: ShardedManifest, i: int) -> Shard | None:
    """What is known of shard `i`: by its own description, else by the finished manifest."""
    try:
        return Shard(**frozen(json.loads(_description(folder, plan.files[i]).read_text())))
    except FileNotFoundError:
        shards = read_sharded(folder, type(plan)).shards
        return shards[i] if shards else None
    except (ValueError, TypeError, KeyError):
        return None


def is_sound(folder: Path, shard: Shard | None) -> bool:
    """Whether a shard is there and as it was described."""
    return shard is not None and (folder / shard.file).is_file() and sha256(folder / shard.file) == shard.sha256


def seal(folder: Path, plan: ShardedManifest) -> str:
    """Write the final manifest, now that all shards are there; returns a line that says what the set holds.

    Raises `BadInput` naming a shard that is not there.
    """
    shards = [described(folder, plan, i) for i in range(len(plan.files))]
    if None in shards:
        name = plan.files[shards.index(None)]
        raise BadInput(f"{folder / name}: missing, expected all processes to write into one folder")
    done = dataclasses.replace(plan, shards=tuple(shard for shard in shards if shard))  # type: ignore[type-var]
    with replacing(folder / MANIFEST) as temporary:
        temporary.write_text(done.to_json())
    for name in plan.files:
        _description(folder, name).unlink(missing_ok=True)
    size = sum(shard.bytes for shard in done.sealed)
    return f"{folder}: {done.contents} in {len(done.files)} shards of {size / 1e6:,.1f} MB in all"


def together(what: str) -> None:
    """Wait until all processes are here, where there are several."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"graftax: {what}")


def _keep(path: Path, text: str) -> None:
    """Write a file, unless it is there with this very text."""
    if not path.is_file() or path.read_bytes() != text.encode():
        with replacing(path) as temporary:
            temporary.write_bytes(text.encode())


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = storage_trouble(error) or " ".join(str(error).split())[:200]
        raise BadInput(f"{path}: cannot be written ({reason})") from None


def _is_foreign(name: str, kind: type[ShardedManifest]) -> bool:
    return not name.startswith((".", f"{kind.stem}-", MANIFEST, *kind.beside))


def _description(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _checksum(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
