r"""The two requests of the walk-through's conversation: the second begins with the first.

Their bytes are those that ``curl -d @round1.txt`` sends after bash has run the walk-through's ``echo '...' > round1.txt``:

* ``'\''`` in ``here'\''s`` is an apostrophe: the string ends, ``\'`` is literal, a new string begins.
* round2 has plain apostrophes in ``you're`` and ``I'm`` inside the single quotes. The first ends the string and the second
  opens it again, so both are lost. The words between them are unquoted arguments, which ``echo`` joins with single spaces.
  The result is ``youre setting up a fun test. Im ready``.
* bash's ``echo`` leaves ``\n`` unchanged: JSON's escape of a line break. (dash's ``echo`` writes line breaks, which
  ``curl -d @file`` drops, so the conversation is slightly shorter.)
* ``echo`` ends the file with a line break, which curl drops.
"""

from __future__ import annotations

OPENING = (
    rb'{"content":"Hi, here'
    rb"'"
    rb"s some system prompt: hi hi hi hi hi hi hi hi hi hi."
    rb"For user 3, here are some other context: hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi."
    rb"I would like to test your intelligence. for this purpose I would like you to play zork. you can interact with the"
    rb" game by typing in commands. I will forward these commands to the game and type in any response. are you ready?"
    rb'","role":"user"}'
)
"""The first message of both requests."""

CONTINUATION = (
    rb',{"content":"Hi there! It looks like youre setting up a fun test. Im ready to play Zork! You can","role":"assistant"}'
    rb',{"content":"% zork\nWelcome to Dungeon. This version created 11-MAR-91.\nYou are in an open field west of a big'
    rb' white house with a boarded\nfront door.\nThere is a small mailbox here.\n>","role":"user"}'
    rb',{"content":"Great!","role":"assistant"}'
    rb',{"content":"Opening the mailbox reveals:\n A leaflet.\n>","role":"user"}'
)
"""The further messages of the second request."""


def _request(max_tokens: int, messages: bytes) -> bytes:
    return (
        rb'{"max_tokens":%d,"messages":[%b],"model":"/model/qwen","stream":true,'
        rb'"stream_options":{"include_usage":true},"temperature":0}' % (max_tokens, messages)
    )


ROUND1 = _request(24, OPENING)
ROUND2 = _request(3, OPENING + CONTINUATION)

LONG = _request(24, rb'{"content":"%b","role":"user"}' % (rb"The first mate counts the barrels in the hold. " * 256))
"""A request of about 3,000 tokens: the debug pages do not show what is cached of prompts below 1,024."""

MODEL = "/model/qwen"
"""The requests' model."""
