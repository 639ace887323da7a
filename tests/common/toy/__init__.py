"""A service with three tables and no purpose, for the tests of what services share."""

from sqlalchemy import Column, Integer, MetaData, String, Table

from hopper_common.eventlog import event_table
from hopper_common.idempotency import requests_table

METADATA = MetaData()
NOTES = Table("notes", METADATA, Column("id", Integer, primary_key=True), Column("text", String, unique=True))
EVENTS = event_table(METADATA, "toy_events")
REQUESTS = requests_table(METADATA)
MIGRATIONS = "tests.common.toy.migrations"
