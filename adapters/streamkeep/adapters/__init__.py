"""Bindings of the client to SDKs, one module for each.

Import the module that you need, as in `streamkeep.adapters.openai`: each wants an SDK that the others do not.
"""

from streamkeep.adapters._resuming import resume_headers

__all__ = ["resume_headers"]
