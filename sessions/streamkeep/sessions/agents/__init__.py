"""What passes between a session and its agents: the history that they are sent, and the chunks that their answers are."""

from streamkeep.sessions.agents.answer import AgentAnswer, AnswerEnd
from streamkeep.sessions.agents.formats import AgentFormat
from streamkeep.sessions.agents.history import History

__all__ = ["AgentAnswer", "AgentFormat", "AnswerEnd", "History"]
