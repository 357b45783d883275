"""`lert-ds card FOLDER`: write the model card of a model folder, and upload the folder to the hub.

    $ lert-ds card runs/quickstart/model
    runs/quickstart/model/README.md
    $ lert-ds card runs/quickstart/model --push-to-hub me/lert-quickstart --private
    https://huggingface.co/me/lert-quickstart

Every model folder is written with its card; this makes it anew, say for a folder of an earlier
version. A card that somebody has edited stays, and is uploaded as it is, unless --overwrite.
"""

import argparse
import logging
import sys
from pathlib import Path

from lert_ds import hub_upload, model_card
from lert_ds.errors import UserError
from lert_ds.model_origin import title_of

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a model folder")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a README.md that somebody has edited"
    )
    parser.add_argument(
        "--push-to-hub", metavar="NAME", help="upload the folder as NAME, owner/name, then"
    )
    parser.add_argument(
        "--private",
        action="store_true",
        help="with --push-to-hub: to be seen by its owner alone",
    )
    parser.add_argument(
        "--revision", metavar="R", help="with --push-to-hub: the branch to write (default: main)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the card, and upload the folder where asked."""
    name = arguments.push_to_hub
    for option, given in (("--private", arguments.private), ("--revision", arguments.revision)):
        if given and name is None:
            raise UserError(f"{option}: there is nothing to upload; say --push-to-hub NAME too")
    if name is not None:
        hub_upload.check_name(name)
    _write(arguments.folder, arguments.overwrite, uploads=name is not None)
    if name is not None:
        address = hub_upload.push(
            arguments.folder, name, private=arguments.private, revision=arguments.revision
        )
        sys.stdout.write(f"{address}\n")


def _write(folder: Path, overwrite: bool, *, uploads: bool) -> None:
    """Write the card of a folder, but not over one that somebody has edited.

    Raises:
        UserError: it was edited, and neither is it to be overwritten nor only to be uploaded.
    """
    path = folder / model_card.CARD
    facts = model_card.read_facts(folder, title_of(folder.absolute()))
    if path.is_file() and not overwrite:
        try:
            edited = model_card.is_edited(path.read_text("utf-8"))
        except UnicodeDecodeError:
            edited = True
        if edited and uploads:
            logger.info("%s: it was edited, and is uploaded as it is", path)
            return
        if edited:
            raise UserError(f"{path}: somebody has edited it; say --overwrite to replace it")
    model_card.write_card(folder, facts.name)
    sys.stdout.write(f"{path}\n")
