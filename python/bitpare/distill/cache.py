"""TeacherCache: store a teacher's logits on disk, so that the teacher runs once per sample."""

import json
import os
import pathlib
from typing import Any

import torch
from torch import Tensor, nn

from bitpare.distill.losses import Teacher, TopLogits
from bitpare.files import read_whole, reserve, write_whole

_VERSION = 1


def fingerprint(model: nn.Module) -> str:
    """Return a hash of the bits of a model's parameters and buffers, the same on every device."""
    total = 0
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            total = (total * 1000003 + _hashed(value.reshape(1, -1))[0].item()) % (1 << 64)
            total ^= sum(name.encode())
    return f"{total:016x}"


def _hashed(rows: Tensor) -> Tensor:
    """Return a hash of each row."""
    contiguous = rows.detach().contiguous()
    wide = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = contiguous.view(wide[contiguous.element_size()]).to(torch.int64)
    odd = torch.arange(bits.shape[1], device=bits.device) * 2654435761 * 2 + 1
    return (bits * odd + (bits >> 7) * 40503).sum(1)


class TeacherCache:
    """A cache of a teacher's logits in memory-mapped files of a directory.

    Rows are identified by the index of a sample and the seed of its augmentation; each seed has
    its own files. Each row has a checksum, so a row that was not written completely counts as
    missing. An existing directory is continued. A directory of another teacher or with other
    settings is an error.

    Args:
        directory: the directory of the files.
        samples: the number of samples.
        top_k: the number of largest logits to store per sample; None stores all.
        temperature: the temperature of the logsumexp of all logits, which ``top_k`` stores too.
        dtype: the type of the stored logits.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        samples: int,
        *,
        top_k: int | None = None,
        temperature: float = 4.0,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        if samples < 1 or (top_k is not None and top_k < 1):
            raise ValueError(
                f"TeacherCache: samples and top_k must be 1 or more, got {samples}, {top_k}"
            )
        if not dtype.is_floating_point:
            raise ValueError(f"TeacherCache: dtype must be a floating-point type, got {dtype}")
        self.directory = pathlib.Path(directory)
        self.samples, self.top_k, self.temperature, self.dtype = samples, top_k, temperature, dtype
        self.classes: int | None = None
        self._files: dict[int, dict[str, Tensor]] = {}

    def _settings(self) -> dict[str, Any]:
        return {
            "version": _VERSION,
            "samples": self.samples,
            "top_k": self.top_k,
            "temperature": self.temperature if self.top_k else None,
            "dtype": str(self.dtype),
        }

    def open(self, teacher: nn.Module | None) -> None:
        """Check that an existing directory holds the logits of this teacher."""
        path, settings = self.directory / "cache.json", self._settings()
        if not path.exists():
            if teacher is None:
                raise ValueError(
                    f"TeacherCache: {self.directory} holds no cache, and there is no teacher"
                )
            self.directory.mkdir(parents=True, exist_ok=True)
            self._write_settings({**settings, "teacher": fingerprint(teacher), "classes": None})
            return
        try:
            found = dict(json.loads(read_whole(path)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"TeacherCache: {path} is damaged: {error}") from error
        for key, value in settings.items():
            if found.get(key) != value:
                raise ValueError(
                    f"TeacherCache: {self.directory} was made with {key} {found.get(key)}, not "
                    f"{value}"
                )
        if teacher is not None and found.get("teacher") != fingerprint(teacher):
            raise ValueError(
                f"TeacherCache: {self.directory} is of another teacher; use another directory or "
                "delete it"
            )
        classes = found.get("classes")
        if not (classes is None or (isinstance(classes, int) and 1 <= classes < 1 << 31)):
            raise ValueError(f"TeacherCache: {path} is damaged: it has {classes!r} classes")
        self.classes = classes

    def _write_settings(self, settings: dict[str, Any]) -> None:
        write_whole(self.directory / "cache.json", (json.dumps(settings) + "\n").encode())

    def _of_seed(self, seed: int) -> dict[str, Tensor]:
        if seed not in self._files:
            assert self.classes is not None
            width = self.classes if self.top_k is None else min(self.top_k, self.classes)
            shapes = {"values": (width, self.dtype), "checksum": (1, torch.int64)}
            if self.top_k is not None:
                shapes |= {"indices": (width, torch.int32), "logsumexp": (1, torch.float32)}
            self._files[seed] = {
                name: self._mapped(f"{seed}.{name}", columns, dtype)
                for name, (columns, dtype) in shapes.items()
            }
        return self._files[seed]

    def _mapped(self, name: str, columns: int, dtype: torch.dtype) -> Tensor:
        """Return a file of the directory as a tensor [samples, columns]."""
        path, size = self.directory / name, self.samples * columns
        reserve(path, size * dtype.itemsize)
        mapped = torch.from_file(str(path), shared=True, size=size, dtype=dtype)
        return mapped.view(self.samples, columns)

    def _checksums(self, files: dict[str, Tensor], index: Tensor) -> Tensor:
        total = sum(
            _hashed(files[n][index]) * (k + 3)
            for k, n in enumerate(sorted(files))
            if n != "checksum"
        )
        assert isinstance(total, Tensor)
        return torch.where(total == 0, 1, total)  # an empty file holds 0

    def missing(self, index: Tensor, seed: int = 0) -> Tensor:
        """Return a bool tensor that is True for samples that are not stored."""
        index = self._checked(index)
        if self.classes is None:
            return torch.ones(len(index), dtype=torch.bool)
        files = self._of_seed(seed)
        return files["checksum"][index, 0] != self._checksums(files, index)

    def write(self, index: Tensor, logits: Tensor, seed: int = 0) -> None:
        """Store a teacher's logits of these samples."""
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"TeacherCache: it holds one tensor of logits, and the teacher gave "
                f"{type(logits).__name__}; name the part with the Distiller's logits="
            )
        index, logits = self._checked(index), logits.detach().cpu()
        if logits.dim() != 2 or len(logits) != len(index):
            raise ValueError(
                f"TeacherCache: logits must be [{len(index)}, classes], got {tuple(logits.shape)}"
            )
        if self.classes is None:
            self.classes = logits.shape[1]
            settings = json.loads((self.directory / "cache.json").read_text())
            self._write_settings({**settings, "classes": self.classes})
        if logits.shape[1] != self.classes:
            raise ValueError(
                f"TeacherCache: {self.directory} holds {self.classes} classes, got "
                f"{logits.shape[1]}"
            )
        files = self._of_seed(seed)
        files["checksum"][index] = 0
        if self.top_k is None:
            files["values"][index] = self._narrowed(logits)
        else:
            values, indices = logits.float().topk(files["values"].shape[1], -1)
            files["values"][index] = self._narrowed(values)
            files["indices"][index] = indices.to(torch.int32)
            softened = logits.float() / self.temperature
            files["logsumexp"][index, 0] = softened.logsumexp(-1)
        files["checksum"][index, 0] = self._checksums(files, index)

    def _narrowed(self, logits: Tensor) -> Tensor:
        """Convert logits to the type of the files. Numbers that are too large saturate."""
        most = torch.finfo(self.dtype).max
        bounded = torch.where(logits.isfinite(), logits.float().clamp(-most, most), logits)
        return bounded.to(self.dtype)

    def read(self, index: Tensor, seed: int = 0, device: torch.device | None = None) -> Teacher:
        """Return the stored logits of these samples."""
        index = self._checked(index)
        gone = self.missing(index, seed)
        if gone.any():
            raise KeyError(
                f"TeacherCache: sample {int(index[gone][0])} is not there for seed {seed}"
            )
        files = self._of_seed(seed)
        values = files["values"][index].to(device)
        if self.top_k is None:
            return values
        indices, logsumexp = files["indices"][index].long(), files["logsumexp"][index, 0]
        return TopLogits(values, indices.to(device), logsumexp.to(device), self.temperature)

    def _checked(self, index: Tensor) -> Tensor:
        index = index.detach().cpu().long().reshape(-1)
        low, high = (int(index.min()), int(index.max())) if index.numel() else (0, 0)
        if low < 0 or high >= self.samples:
            raise IndexError(
                f"TeacherCache: samples must be from 0 to {self.samples - 1}, got {low} to {high}"
            )
        return index

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # a copy maps the files again
