"""Bindings of the client to SDKs and to the browser, one module for each.

Import the module that you need, as in `streamkeep.adapters.NAME`: each wants an SDK that the others do not.
"""

__all__: list[str] = []
