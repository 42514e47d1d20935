"""Make folders of captioned emoji from the npm package `emoji-datasource-twitter`.

    npm pack emoji-datasource-twitter && tar xzf emoji-datasource-twitter-*.tgz
    python scripts/emoji_pairs.py package emoji/base --except "Animals & Nature"
    python scripts/emoji_pairs.py package emoji/animals --only "Animals & Nature"

A caption is the emoji's name, its other short names and its subcategory: "dog face, dog, animal
mammal". Images are hard-linked if the file system allows it, else copied.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from latent_robust.files import write_jsonl


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, help="the unpacked npm package")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--only", action="append", help="use only this category; may be repeated")
    parser.add_argument(
        "--except",
        action="append",
        dest="omitted",
        default=["Component"],
        help="leave out this category; may be repeated",
    )
    options = parser.parse_args()
    emoji = json.loads((options.package / "emoji.json").read_text(encoding="utf-8"))
    categories = {entry["category"] for entry in emoji}
    for category in (*(options.only or ()), *options.omitted):
        if category not in categories:
            parser.error(
                f"unknown category {category!r}; the categories are {', '.join(sorted(categories))}"
            )
    options.out.mkdir(parents=True)
    rows = []
    for entry in emoji:
        chosen = entry["category"] in (options.only or categories - set(options.omitted))
        if not chosen or not entry["has_img_twitter"]:
            continue
        source = options.package / "img" / "twitter" / "64" / entry["image"]
        link(source, options.out / entry["image"])
        rows.append({"file_name": entry["image"], "text": caption(entry)})
    write_jsonl(rows, options.out / "metadata.jsonl")
    print(f"{len(rows)} pairs: {options.out}")
    return 0


def caption(entry: dict) -> str:
    names = [entry["name"].lower(), *(n.replace("_", " ") for n in entry["short_names"])]
    return ", ".join(dict.fromkeys([*names, entry["subcategory"].replace("-", " ")]))


def link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


if __name__ == "__main__":
    sys.exit(main())
