"""Datasets and secrets of the account."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _directory
from .._calls import async_call
from .._progress import Progress
from ..errors import ChangedFile, NotFound
from ..models import DatasetManifest, DatasetUpload, StoredDataset, StoredSecret
from .transport import SILENCE, AsyncTransport

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from ..requests import DatasetFile

# Most times that the market may say that contents are missing.
MAX_ROUNDS = 3
# The time for a manifest, whose files the market all looks up.
MANIFEST_SECONDS = 120.0


class AsyncDatasets:
    """The datasets of the account: directories of files that jobs read."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def push(
        self, directory: str | os.PathLike[str], name: str | None = None, *, progress: bool | None = None
    ) -> StoredDataset:
        """Uploads a directory. Files that the market has already are not sent again, so an upload that broke off goes
        on where it broke off. What a `.gpubnbignore` in the directory names is left out."""
        return await self.upload(await async_call(_directory.of_data, directory), name, progress=progress)

    async def upload(
        self, dataset: _directory.Dataset, name: str | None = None, *, progress: bool | None = None
    ) -> StoredDataset:
        """Uploads the files of a dataset that are missing at the market."""
        path, manifest = f"/datasets/{dataset.id()}", dataset.manifest()
        contents = dataset.contents()
        headers = {"content-type": "application/json"}
        async with self._transport.uploading:
            for _ in range(MAX_ROUNDS):
                answer = await self._transport.json(
                    "PUT", path, content=manifest, headers=headers, params={"name": name}, timeout=MANIFEST_SECONDS
                )
                upload = DatasetUpload.model_validate(answer)
                if upload.stored is not None:
                    return upload.stored
                packs = list(_directory.packs(contents, upload.missing))
                total, sent = sum(contents[index]["bytes"] for pack in packs for index in pack), 0
                with Progress("Uploading", progress, unit="B") as bar:
                    for pack in packs:
                        files = [contents[index] for index in pack]
                        sent += await self._send(path, pack, dataset, files)
                        bar.show(sent, total)
        raise ChangedFile("The market misses files that were sent: do they change? Try again.")

    async def _send(self, path: str, pack: range, dataset: _directory.Dataset, files: Sequence[DatasetFile]) -> int:
        """Sends contents in one request, and returns their bytes."""
        size = sum(file["bytes"] for file in files)

        def pieces() -> Iterator[bytes]:
            for file in files:
                yield from dataset.pieces(file)

        params, headers = {"first": pack.start, "count": len(pack)}, {"content-length": str(size)}
        await self._transport.request(
            "PUT", f"{path}/contents", pieces=pieces, params=params, headers=headers, timeout=SILENCE
        )
        return size

    async def list(self) -> list[StoredDataset]:
        """The datasets, newest first."""
        return [StoredDataset.model_validate(row) for row in await self._transport.json("GET", "/datasets")]

    async def info(self, dataset: str) -> DatasetManifest:
        """The files of a dataset, which is named by its name, its id or the first digits of its id."""
        found = await self._find(dataset)
        return DatasetManifest.model_validate(await self._transport.json("GET", f"/datasets/{found}"))

    async def delete(self, dataset: str) -> None:
        """Deletes a dataset. Jobs that were submitted with it keep it."""
        found = await self._find(dataset)
        await self._transport.request("DELETE", f"/datasets/{found}", timeout=MANIFEST_SECONDS)

    async def _find(self, wanted: str) -> str:
        rows = await self.list()
        named = [row.dataset for row in rows if row.name == wanted]
        matching = {row.dataset for row in rows if len(wanted) >= 8 and row.dataset.startswith(wanted)}
        if named or len(matching) == 1:
            return named[0] if named else matching.pop()
        what = "Several datasets begin with" if matching else "You have no dataset"
        raise NotFound(404, "NotFound", f"{what} {wanted}.")


class AsyncSecrets:
    """The named secrets of the account. The market shows no value again."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def set(self, name: str, value: str) -> StoredSecret:
        """Stores a secret, which jobs get as a variable of this name (`secrets=["HF_TOKEN"]`)."""
        answer = await self._transport.json("PUT", f"/secrets/{name}", body={"value": value})
        return StoredSecret.model_validate(answer)

    async def list(self) -> list[StoredSecret]:
        """The names of the secrets, with the time of their last use."""
        return [StoredSecret.model_validate(row) for row in await self._transport.json("GET", "/secrets")]

    async def delete(self, name: str) -> None:
        """Deletes a secret."""
        await self._transport.request("DELETE", f"/secrets/{name}")
