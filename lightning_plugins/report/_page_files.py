"""The page of a model beside its run record: never allowed to cost the record."""

from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_warn

from legibility.tradeoff import RunRecord
from legibility.tradeoff.model_page import ModelPicture, page_path, picture_path, save_picture, write_model_html


def write_page(record: RunRecord, picture: ModelPicture, path: Path) -> Path | None:
    """Writes ``model.html``, and what it is drawn from, beside a record.

    Args:
        record: The run.
        picture: What is drawn.
        path: The record's file, which need not be there yet.

    Returns:
        The page; None if it could not be written, which is warned of.
    """
    try:
        save_picture(picture, picture_path(path))
        return write_model_html(record, picture, page_path(path))
    except Exception as error:  # noqa: BLE001 - a page must not cost the record
        rank_zero_warn(f"InterpretabilityReport: the model's page failed: {type(error).__name__}: {error}")
        return None
