"""Made-up text with exact and near copies, and the content of folders."""

import pathlib
import random

from flaxbert.train.folder_lock import LOCK_NAME

WORDS = ("a", "fine", "film", "films", "bad", "the", "was")


def sentence(number: int, length: int = 30) -> str:
    """Returns words in an order that belongs to the number."""
    return " ".join(random.Random(number).choices(WORDS, k=length)) + "."


def write_texts(folder: pathlib.Path, num_books: int = 3, num_documents: int = 12) -> pathlib.Path:
    """Writes books of documents between blank lines; a few repeat an earlier one, wholly or but for a word."""
    folder.mkdir()
    for book in range(num_books):
        documents = [
            f"{book} {sentence(book * 100 + number)} {sentence(number, 40)}" for number in range(num_documents)
        ]
        documents[5] = documents[1].upper()
        if book:
            documents[7] = f"0 {sentence(2)} {sentence(2, 40)} {WORDS[book]}"
        (folder / f"{book}.txt").write_text("\n\n".join(documents) + "\n", "utf-8")
    return folder


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    """Returns the content of every file in a folder, but for its lock, which names the process."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LOCK_NAME
    }
