"""The grammar of weights in prompts, against what AUTOMATIC1111's web UI makes of them."""

import contextlib
import time

import pytest

from shared.core.prompt_weights import MalformedWeights, Piece, parse_weights


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        # The examples in the docstring of its `parse_prompt_attention`.
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).)",
            [
                ("a ", 1.0),
                ("house", 1.5730000000000004),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641000000000006),
                (".", 1.1),
            ],
        ),
        ("[less]", [("less", 1 / 1.1)]),
        ("[word:1.3]", [("word:1.3", 1 / 1.1)]),
        ("(word:-0.5)", [("word", -0.5)]),
        ("(word: 1.3 )", [("word", 1.3)]),
        ("(word:much)", [("word:much", 1.1)]),
        ("a smile :) or ] two", [("a smile :) or ] two", 1.0)]),
        ("ratio 4:3)", [("ratio 4:3)", 1.0)]),
        (r"back\\slash \( and a lone \ one", [(r"back\slash ( and a lone  one", 1.0)]),
        ("([a)]", [("a", 1.1 / 1.1)]),
        ("()", []),
        ("", []),
    ],
)
def test_weights_are_read_as_the_web_ui_reads_them(prompt: str, pieces: list[Piece]) -> None:
    [part] = parse_weights(prompt)
    assert [text for text, _ in part] == [text for text, _ in pieces]
    assert [weight for _, weight in part] == pytest.approx([weight for _, weight in pieces])


def test_break_separates_parts_wherever_it_stands() -> None:
    assert parse_weights("a BREAK b") == [[("a ", 1.0)], [(" b", 1.0)]]
    assert parse_weights("(a BREAK b:2)") == [[("a ", 2.0)], [(" b", 2.0)]]
    assert parse_weights("a OUTBREAK, break BREAKs") == [[("a OUTBREAK, break BREAKs", 1.0)]]


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("a (red circle", "unclosed_weight"),
        ("a (red:1.3 circle", "unclosed_weight"),
        ("a [red circle", "unclosed_weight"),
        ("((a)", "unclosed_weight"),
        ("(a:1.2.3)", "malformed_weight"),
        ("(a:.)", "malformed_weight"),
        ("(a:10.5)", "weight_out_of_range"),
        ("(a:-11)", "weight_out_of_range"),
        ("((a:4):4)", "weight_out_of_range"),
        (f"(a:{'9' * 400})", "weight_out_of_range"),
        (f"((a:{'1' * 320}):0)", "weight_out_of_range"),
        ("(" * 33 + "a" + ")" * 33, "weights_too_deep"),
    ],
)
def test_what_breaks_a_rule_is_refused(prompt: str, reason: str) -> None:
    with pytest.raises(MalformedWeights) as raised:
        parse_weights(prompt)
    assert raised.value.reason == reason


@pytest.mark.parametrize("text", ["(a", " ", "([", ":1", "\\", "(a)", "BREAK ", "[(a:2)]", ": "])
def test_the_time_grows_with_the_length_alone(text: str) -> None:
    """A hostile prompt of 4,000 characters takes about as long as 40 of 100."""

    def seconds(prompt: str, times: int) -> float:
        begun = time.process_time()
        for _ in range(times):
            with contextlib.suppress(MalformedWeights):
                parse_weights(prompt)
        return time.process_time() - begun

    short, long = (text * 4000)[:100], (text * 4000)[:4000]
    best = min(seconds(long, 5) for _ in range(3)) / max(seconds(short, 200), 1e-4)
    assert best < 10
