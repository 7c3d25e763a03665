"""The commit-msg hook: `check_commit_subject.py FILE` checks the form of a commit message's subject."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

MAX_LENGTH = 72
"""Characters of a subject; longer ones are cut in `git log --oneline` and on web pages."""
GENERATED = re.compile(r"(Merge |Revert \"|Reapply \"|(fixup|squash|amend)! )")
"""Subjects that git writes itself."""
NOT_A_SUFFIX = frozenset({
    "bring", "embed", "exceed", "feed", "heed", "need", "ping", "proceed", "ring", "seed", "shed", "sing",
    "speed", "spring", "string", "succeed", "swing", "weed", "wring",
})  # fmt: skip
"""Imperatives that happen to end in -ed or -ing."""


def main(arguments: Sequence[str]) -> int:
    """Print the faults of the subject in the file that the one argument names; 1 if there are any."""
    (path,) = arguments
    faults = problems(subject(Path(path).read_text(encoding="utf-8")))
    for problem in faults:
        print(f"commit subject: {problem}", file=sys.stderr)
    return 1 if faults else 0


def subject(message: str) -> str:
    """The first line of a message that is not empty and no comment; empty if there is none."""
    lines = (line.rstrip() for line in message.splitlines() if not line.startswith("#"))
    return next((line for line in lines if line), "")


def problems(line: str) -> list[str]:
    """The faults of a subject, one sentence each."""
    if not line:
        return ["it is empty; say what the commit does, as in 'Add a cache'"]
    if GENERATED.match(line):
        return []
    faults = []
    if len(line) > MAX_LENGTH:
        faults.append(f"it has {len(line)} characters; use at most {MAX_LENGTH} and a body for the rest")
    if not line[0].isupper():
        faults.append(f"it starts with {line[0]!r}; start with a capital letter")
    if line.endswith("."):
        faults.append("it ends with a period; leave that out")
    word = re.split(r"[^\w'-]", line)[0]
    if re.search(r"(ed|ing)$", word, re.IGNORECASE) and word.lower() not in NOT_A_SUFFIX:
        faults.append(f"it starts with {word!r}; use the imperative, as in 'Add', not 'Added' or 'Adding'")
    return faults


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
