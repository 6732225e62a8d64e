"""Run records: written, read, found, checked.

- files: `save_record`, `load_record`, `find_records`
- anywhere: `read_records` takes folders, offline runs of W&B and W&B projects; `Records`, `LeftOut`
- the format for other programs: `json_schema`
"""

from legibility.tradeoff.records._file import find_records as find_records
from legibility.tradeoff.records._file import load_record as load_record
from legibility.tradeoff.records._file import save_record as save_record
from legibility.tradeoff.records._schema import json_schema as json_schema
from legibility.tradeoff.records._sources import LeftOut as LeftOut
from legibility.tradeoff.records._sources import Records as Records
from legibility.tradeoff.records._sources import read_records as read_records

__all__ = ["LeftOut", "Records", "find_records", "json_schema", "load_record", "read_records", "save_record"]
