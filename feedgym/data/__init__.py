"""The data every part of feedgym exchanges: event logs, catalogues, batches and preferences."""

from feedgym.data.events import BEHAVIOURS, Catalog, EventLog, LoggedSessions

__all__ = ["BEHAVIOURS", "Catalog", "EventLog", "LoggedSessions"]
