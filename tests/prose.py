"""What of a Markdown page is sentences."""

import re


def sentences(markdown: str) -> list[str]:
    """Of paragraphs and list items; without code, tables, headings and images."""
    text = re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"!\[.*?\]\([^)]*\)", "", text, flags=re.DOTALL)
    blocks, block = [], []
    for line in [*text.splitlines(), ""]:
        starts = re.match(r"\s*([-*] |\d+\. )", line)
        other = not line.strip() or re.match(r"(\||#|    |:::|!!!|<)", line)
        if starts or other:
            blocks.append(" ".join(block))
            block = []
        if not other or starts:
            block.append(re.sub(r"^\s*([-*] |\d+\. )", "", line).strip())
    return [
        sentence
        for block in blocks
        if block
        for sentence in re.split(r"(?<=[.!?])[)*\"]* +(?=[A-Z`\"*\[(])", block)
    ]


def code_lines(markdown: str) -> list[str]:
    """Lines of code blocks, indented or fenced, but for those fenced as `text`, which are output
    and formulas. A line that ends in a backslash goes on in the next."""
    fenced = re.findall(r"```(?!text)\w*\n(.*?)```", markdown, flags=re.DOTALL)
    rest = re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)
    indented = re.findall(r"^    (.*)$", rest, flags=re.MULTILINE)
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join([*fenced, *indented]))
    return [line.strip() for line in joined.splitlines() if line.strip()]


def inline_code(markdown: str) -> list[str]:
    rest = re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)
    return re.findall(r"`([^`\n]+)`", rest)
