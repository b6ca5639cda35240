"""The proxy service: every upstream response becomes a durable stream."""

from streamkeep.proxy.app import create_app
from streamkeep.proxy.settings import InvalidSetting, Settings

__all__ = ["InvalidSetting", "Settings", "create_app"]
