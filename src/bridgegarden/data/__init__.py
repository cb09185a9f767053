"""Any accepted data set to token ids and labels, with a way to look at the result and to name it."""

from bridgegarden.data.audit import Span, audit_spans, audit_text
from bridgegarden.data.chat import Columns, Conversation, conversation, prompt, with_answer
from bridgegarden.data.encode import (
    TokenisedRow,
    chat_template_fingerprint,
    end_of_turn_ids,
    tokenise_row,
    tokenizer_fingerprint,
    vocabulary_size,
)
from bridgegarden.data.json_rows import RowsAsWritten
from bridgegarden.data.row_reader import RowRules
from bridgegarden.data.rows import Mix, Source, load_mix, load_rows, place
from bridgegarden.data.teacher_prompt import TeacherByRow, TeacherPrompt
from bridgegarden.data.tokenise import tokenise, tokenise_stream

__all__ = [
    "Columns",
    "Conversation",
    "Mix",
    "RowRules",
    "RowsAsWritten",
    "Source",
    "Span",
    "TeacherByRow",
    "TeacherPrompt",
    "TokenisedRow",
    "audit_spans",
    "audit_text",
    "chat_template_fingerprint",
    "conversation",
    "end_of_turn_ids",
    "load_mix",
    "load_rows",
    "place",
    "prompt",
    "tokenise",
    "tokenise_row",
    "tokenise_stream",
    "tokenizer_fingerprint",
    "vocabulary_size",
    "with_answer",
]
