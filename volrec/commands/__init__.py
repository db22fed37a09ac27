"""What each command does with the API and what it tells on the terminal; `cli` only parses arguments."""

from volrec.commands.studies import (
    demo,
    evaluate,
    fuse,
    import_weights,
    inspect,
    learn_weights,
    models,
    plan,
    predict,
    schema,
    train,
)

__all__ = [
    "demo",
    "evaluate",
    "fuse",
    "import_weights",
    "inspect",
    "learn_weights",
    "models",
    "plan",
    "predict",
    "schema",
    "train",
]
