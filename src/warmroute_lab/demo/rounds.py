r"""The two requests of a conversation with which one sees prefix-aware routing: the second repeats the first and goes on.

They are what a bash that runs the well-known walk-through's ``echo '...' > round1.txt`` writes and ``curl -d @round1.txt``
then sends:

* ``'\''`` in ``here'\''s`` is an apostrophe: the string ends, ``\'`` is literal, the string goes on.
* round2 has plain apostrophes in ``you're`` and ``I'm`` inside the single quotes. The first ends the string and the second
  opens it again, so both are gone. The words between them stand unquoted: they become arguments, which ``echo`` joins
  with single spaces, as they were. What arrives is ``youre setting up a fun test. Im ready``.
* bash's ``echo`` leaves ``\n`` as it is, which is JSON's escape of a line break. (dash's writes real line breaks, and
  ``curl -d @file`` drops them: a slightly shorter conversation.)
* ``echo`` ends the file with a line break, and curl drops it too.
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
"""The message with which both requests begin."""

CONTINUATION = (
    rb',{"content":"Hi there! It looks like youre setting up a fun test. Im ready to play Zork! You can","role":"assistant"}'
    rb',{"content":"% zork\nWelcome to Dungeon. This version created 11-MAR-91.\nYou are in an open field west of a big'
    rb' white house with a boarded\nfront door.\nThere is a small mailbox here.\n>","role":"user"}'
    rb',{"content":"Great!","role":"assistant"}'
    rb',{"content":"Opening the mailbox reveals:\n A leaflet.\n>","role":"user"}'
)
"""What the second request has after it."""


def _request(max_tokens: int, messages: bytes) -> bytes:
    return (
        rb'{"max_tokens":%d,"messages":[%b],"model":"/model/qwen","stream":true,'
        rb'"stream_options":{"include_usage":true},"temperature":0}' % (max_tokens, messages)
    )


ROUND1 = _request(24, OPENING)
ROUND2 = _request(3, OPENING + CONTINUATION)

MODEL = "/model/qwen"
"""The model that they ask for."""
