"""Search over HTTP: by meaning and by words, filtered, page by page, whatever is typed."""

import base64
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.search.conftest import CAPTIONS, Team


@pytest.mark.parametrize(
    ("q", "first"),
    [
        ("winter summits when the sun goes down", "snowy mountains at sunset, a lake"),
        ("a wet day on meadows by a brook", "grassy hills in the rain, a river"),
        ("a hut in bad weather", "rocky hills in a storm, a cabin"),
    ],
)
def test_it_finds_what_is_meant(landscapes: Team, q: str, first: str) -> None:
    assert landscapes.prompts(q)[0] == first


def test_every_image_is_found_in_descending_order(landscapes: Team) -> None:
    page = landscapes.search("a lake", limit=100)
    scores = [hit["score"] for hit in page["data"]]
    assert scores == sorted(scores, reverse=True)
    assert {hit["prompt"] for hit in page["data"]} == set(CAPTIONS)
    assert (page["has_more"], page["next_cursor"]) == (False, None)
    hit = page["data"][0]
    assert hit["image"]["prompt"] == hit["prompt"]
    assert hit["image"]["seed"] == CAPTIONS.index(hit["prompt"])
    assert hit["made_with"]["scheduler"] == "ddim"
    assert -1 <= hit["similarity"] <= 1


def test_the_prompt_itself_scores_one(landscapes: Team) -> None:
    best = landscapes.search(CAPTIONS[4])["data"][0]
    assert best["prompt"] == CAPTIONS[4]
    assert best["score"] == pytest.approx(1.0, abs=1e-3)


def test_a_long_prompt_scores_one_too(team: Team) -> None:
    words = "snowy mountains at sunset, a lake, pine trees, two red houses, an old boat and a pier"
    team.add(words)
    assert team.search(words)["data"][0]["score"] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("q", "first"),
    [
        ("73155", "a shoe, ART-73155, on white"),
        ("art-73155", "a shoe, ART-73155, on white"),
        ("0042", "product photo, file IMG_0042.png"),
        ("img_0042.png", "product photo, file IMG_0042.png"),
        ("8822", "a house for <b>order-8822</b>"),
        ("node", "a logo of node.js"),
    ],
)
def test_names_and_numbers_are_found_within_others(team: Team, q: str, first: str) -> None:
    for prompt in (
        "a shoe, ART-73155, on white",
        "product photo, file IMG_0042.png",
        "a house for <b>order-8822</b>",
        "a logo of node.js",
        "order 9933 please",
        "seven numbers on a wall",
        "the 8822nd house",
        "nodding flowers",
    ):
        team.add(prompt)
    assert team.prompts(q)[0] == first


def test_an_exact_phrase_wins_over_a_vague_neighbour(landscapes: Team) -> None:
    """A still lake in one prompt, lakes and streams by near words in others."""
    assert landscapes.prompts("still lake")[0] == CAPTIONS[10]


def test_a_rare_word_wins_over_many_neighbours(make_team: Callable[[], Team]) -> None:
    team = make_team()
    for number in range(55):
        team.add(f"a portrait of a woman with hair number {number}", meaning=True, seed=number)
    team.add("grandmother Zyxwvia")
    assert team.prompts("a portrait of a woman called zyxwvia, her hair")[0] == (
        "grandmother Zyxwvia"
    )


FILTERS: list[tuple[dict[str, Any], set[int]]] = [
    ({"session_id": "odd"}, {1, 3, 5, 7, 9, 11}),
    ({"model": "other"}, {5}),
    ({"seed": 8}, {8}),
    ({"kind": "img2img"}, {3}),
    ({"width": 128}, set(range(6, 12))),
    ({"height": 64}, {0, 1, 2, 3}),
    ({"starred": "true"}, {1, 2}),
    ({"starred": "false"}, set(range(12)) - {1, 2}),
    ({"metadata.mood": "calm"}, {0, 1, 2}),
    ({"metadata.shelf": "a:b'c"}, set(range(12))),
    ({"metadata.mood": "calm", "session_id": "odd"}, {1}),
    ({"created_after": "2020-01-01T00:00:00Z"}, set(range(12))),
    ({"created_before": "2020-01-01T00:00:00Z"}, set()),
    ({"session_id": "nobodys"}, set()),
]


@pytest.mark.parametrize(("filters", "expected"), FILTERS, ids=[str(f) for f, _ in FILTERS])
def test_filters_lose_no_rows(
    landscapes: Team, filters: dict[str, Any], expected: set[int]
) -> None:
    found = landscapes.search("a lake", limit=100, **filters)["data"]
    assert {hit["image"]["seed"] for hit in found} == expected
    assert len(found) == len(expected)


def test_pages_show_every_image_once(landscapes: Team) -> None:
    seen: list[str] = []
    after = None
    while True:
        asked = {"limit": 5} | ({"after": after} if after else {})
        page = landscapes.search("mountains at night", **asked)
        assert len(page["data"]) == min(5, len(CAPTIONS) - len(seen))
        seen += [hit["image"]["id"] for hit in page["data"]]
        after = page["next_cursor"]
        if not page["has_more"]:
            break
    assert len(seen) == len(set(seen)) == len(CAPTIONS)
    whole = landscapes.search("mountains at night", limit=100)["data"]
    assert seen == [hit["image"]["id"] for hit in whole]


def test_a_page_can_end_between_two_images_of_a_prompt(team: Team) -> None:
    made = [team.add("a red boat", seed=number) for number in range(5)]
    made += [team.add("a blue boat")]
    seen: list[str] = []
    after = None
    for _ in range(3):
        page = team.search("a red boat", limit=2, **({"after": after} if after else {}))
        seen += [hit["image"]["id"] for hit in page["data"]]
        after = page["next_cursor"]
    assert after is None
    assert seen == [*reversed(made[:5]), made[5]]


def test_a_cursor_goes_with_its_search_alone(landscapes: Team, team: Team) -> None:
    cursor = landscapes.search("a lake", limit=2)["next_cursor"]
    raw = bytearray(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    raw[12] ^= 1
    forged = base64.urlsafe_b64encode(raw).decode().rstrip("=")
    attempts: list[tuple[Team, dict[str, Any]]] = [
        (landscapes, {"q": "a lake", "after": forged}),
        (landscapes, {"q": "a lake", "after": cursor[:-3]}),
        (landscapes, {"q": "a lake", "after": "!"}),
        (landscapes, {"q": "a lake", "after": ""}),
        (landscapes, {"q": "a river", "after": cursor}),
        (landscapes, {"q": "a lake", "after": cursor, "session_id": "odd"}),
        (landscapes, {"q": "a lake", "after": cursor, "min_score": 0.1}),
        (team, {"q": "a lake", "after": cursor}),
    ]
    for who, parameters in attempts:
        answer = who.http.get("/v1/search", params=parameters)
        assert (answer.status_code, answer.json()["code"]) == (422, "malformed_cursor"), parameters
    assert landscapes.search("a lake", limit=2, after=cursor)["data"]


def test_min_score_leaves_out_the_rest(landscapes: Team) -> None:
    every = landscapes.search("a still lake", limit=100)["data"]
    border = every[3]["score"]
    kept = landscapes.search("a still lake", limit=100, min_score=border)["data"]
    assert [hit["image"]["id"] for hit in kept] == [
        hit["image"]["id"] for hit in every if hit["score"] >= border
    ]


HOSTILE = [
    "'; DROP TABLE prompts; --",
    "' OR '1'='1",
    "[0.1,0.2,0.3]",
    "[1,2,3]'::vector <=> embedding",
    "a & b | !c <-> d:*",
    "'unclosed \\ quote''",
    "$1 %s %(a)s {0} :name ::text",
    "E'\\x00'",
    "雪山の夕暮れ、湖",
    "جبال ثلجية عند الغروب",
    "заснеженные горы",
    "🏔️🌅",
    "...",
    "\u202egnp.exe",
    "mountain " * 440,
    "x" * 4000,
    "\ud7ff\ue000\U0010ffff",
]


@pytest.mark.parametrize("q", HOSTILE, ids=range(len(HOSTILE)))
def test_whatever_is_typed_is_only_text(landscapes: Team, q: str) -> None:
    found = landscapes.search(q, limit=100)["data"]
    page = landscapes.search(q, limit=3)
    if not found:  # nothing that was made is like it
        assert page["data"] == []
        return
    assert len(found) == len(CAPTIONS)
    again = landscapes.search(q, limit=100, after=page["next_cursor"])
    assert len(again["data"]) == len(CAPTIONS) - 3


@pytest.mark.parametrize(
    "parameters",
    [
        {"min_score": 0.5},
        {"rank": "similarity"},
        {"q": "a", "rank": "best"},
        {"q": ""},
        {"q": "  \n"},
        {"q": "a" * 4001},
        {"q": "a" * 10_000},
        {"q": "a\0b"},
        {"q": "a", "limit": 0},
        {"q": "a", "limit": 101},
        {"q": "a", "limit": "many"},
        {"q": "a", "min_score": "nan"},
        {"q": "a", "min_score": 2},
        {"q": "a", "seed": 2**53},
        {"q": "a", "seed": -1},
        {"q": "a", "session_id": "a\0b"},
        {"q": "a", "kind": "video"},
        {"q": "a", "created_after": "yesterday"},
        {"q": "a", "metadata.": "b"},
        {"q": "a", "metadata.k": "\0"},
    ],
)
def test_what_cannot_be_asked_is_422(landscapes: Team, parameters: dict[str, Any]) -> None:
    answer = landscapes.http.get("/v1/search", params=parameters)
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] == "validation_failed"


CHINESE = "一只红色的猫坐在窗台上"
JAPANESE = "雪山の夕暮れ、湖のほとり"
THAI = "แมวสีแดงนั่งอยู่ริมหน้าต่าง"
KHMER = "ឆ្មាពណ៌ក្រហមអង្គុយ"
LAO = "ແມວສີແດງນັ່ງຢູ່"
BURMESE = "ကြောင်နီထိုင်နေသည်"
SPACELESS = [CHINESE, JAPANESE, THAI, KHMER, LAO, BURMESE, "party 🎈 time"]


@pytest.fixture(scope="module")
def scripts(make_team: Callable[[], Team]) -> Team:
    """Prompts in scripts without spaces, and others for company."""
    made = make_team()
    for prompt in (*SPACELESS, "x", "a red cat by the window", "蓝天白云", "แม่น้ำ"):
        made.add(prompt)
    return made


@pytest.mark.parametrize(
    ("q", "first"),
    [
        ("红色", CHINESE),
        ("猫", CHINESE),
        ("红色的猫", CHINESE),
        ("夕暮れ", JAPANESE),
        ("湖", JAPANESE),
        ("สีแดง", THAI),
        ("ក្រហម", KHMER),
        ("ສີແດງ", LAO),
        ("ထိုင်", BURMESE),
        ("🎈", "party 🎈 time"),
    ],
)
def test_parts_of_prompts_in_scripts_without_spaces_are_found(
    scripts: Team, q: str, first: str
) -> None:
    best, second, *_ = scripts.search(q)["data"]
    assert best["prompt"] == first
    assert best["score"] > 0.4 > second["score"]


@pytest.mark.parametrize("prompt", SPACELESS)
def test_what_a_model_knows_no_part_of_is_found_whole(scripts: Team, prompt: str) -> None:
    assert scripts.prompts(prompt)[0] == prompt


def test_unknown_tokens_are_like_nothing(scripts: Team) -> None:
    assert {hit["similarity"] for hit in scripts.search("猫")["data"]} == {0}
    similarity = {hit["prompt"]: hit["similarity"] for hit in scripts.search("a cat")["data"]}
    assert similarity[LAO] == similarity[KHMER] == 0 < similarity["a red cat by the window"]


def test_a_rare_character_is_found_among_many(make_team: Callable[[], Team]) -> None:
    team = make_team()
    for number in range(55):
        team.add(f"一只狗在草地上奔跑{number}", meaning=False)
    team.add("黑猫", meaning=False)
    assert team.prompts("一只黑猫")[0] == "黑猫"


@pytest.mark.parametrize("q", ["xqzv blorptang", "wqpfjk", "猫", "🏔️🌅"])
def test_what_is_like_nothing_finds_nothing(landscapes: Team, q: str) -> None:
    page = landscapes.search(q)
    assert (page["data"], page["has_more"], page["next_cursor"]) == ([], False, None)


def test_by_similarity_alone(landscapes: Team) -> None:
    q = "a still lake, pines"
    seen: list[float] = []
    after: dict[str, str] = {}
    for _ in range(4):
        page = landscapes.search(q, rank="similarity", limit=3, **after)
        seen += [hit["similarity"] for hit in page["data"]]
        after = {"after": page["next_cursor"]}
    assert page["next_cursor"] is None
    assert len(seen) == len(CAPTIONS)
    assert seen == sorted(seen, reverse=True)
    cursor = landscapes.search(q, limit=2)["next_cursor"]
    parameters = {"q": q, "after": cursor, "rank": "similarity"}
    assert landscapes.http.get("/v1/search", params=parameters).status_code == 422


def test_the_score_is_the_same_in_either_order(team: Team) -> None:
    for prompt in ("a portrait of a woman", "grandmother Zyxwvia"):
        team.add(prompt)
    q = "a portrait of zyxwvia the woman"
    by_similarity = team.search(q, rank="similarity")["data"]
    score = {hit["prompt"]: hit["score"] for hit in by_similarity}
    assert score == {hit["prompt"]: hit["score"] for hit in team.search(q)["data"]}


def test_near_duplicates_do_not_fill_the_first_row(team: Team) -> None:
    for number in range(6):
        team.add("a red boat on a lake", seed=number)
    for other in ("a red boat in a harbour", "a boat on the sea", "a blue boat, a river"):
        team.add(other)
    plain = team.search("a red boat on a lake")["data"]
    assert len({hit["prompt"] for hit in plain[:6]}) == 1
    diverse = team.search("a red boat on a lake", diversity="true")["data"]
    assert diverse[0]["prompt"] == "a red boat on a lake"
    assert len({hit["prompt"] for hit in diverse[:6]}) == 4
    paged: list[str] = []
    after: dict[str, str] = {}
    while after.get("after", "") is not None:
        page = team.search("a red boat on a lake", diversity="true", limit=4, **after)
        paged += [hit["image"]["id"] for hit in page["data"]]
        after = {"after": page["next_cursor"]}
    assert sorted(paged) == sorted(hit["image"]["id"] for hit in plain)


def test_near_duplicates_are_folded_into_the_better_entry(team: Team) -> None:
    boats = [team.add("a red boat on a lake", seed=number) for number in range(4)]
    team.add("A red boat, on a lake!", seed=9)
    other = team.add("a blue boat on a lake")
    for parameters in ({"q": "a red boat on a lake"}, {}):
        page = team.http.get("/v1/search", params={**parameters, "fold": "true"}).json()
        by_prompt = {hit["prompt"].lower()[2:5]: hit for hit in page["data"]}
        assert len(page["data"]) == 2
        assert by_prompt["blu"]["image"]["id"] == other
        assert by_prompt["blu"]["near_duplicates"] == []
        alike = by_prompt["red"]["near_duplicates"]
        assert len(alike) == 4
        assert {image["seed"] for image in alike} <= {0, 1, 2, 3, 9}
    plain = team.search("a red boat on a lake")["data"]
    assert {len(hit["near_duplicates"]) for hit in plain} == {0}
    like = {"image_id": boats[0]}
    folded = team.http.post("/v1/search", json=like, params={"fold": "true"}).json()["data"]
    assert [len(hit["near_duplicates"]) for hit in folded] == [3, 0]


def test_without_a_query_the_filters_list(landscapes: Team) -> None:
    answer = landscapes.http.get("/v1/search", params={"starred": "true"}).json()
    assert [hit["image"]["seed"] for hit in answer["data"]] == [2, 1]
    assert {(hit["score"], hit["similarity"]) for hit in answer["data"]} == {(None, None)}
    seen: list[int] = []
    after: dict[str, str] = {}
    while after.get("after", "") is not None:
        parameters = {"session_id": "odd", "limit": "4", **after}
        page = landscapes.http.get("/v1/search", params=parameters).json()
        seen += [hit["image"]["seed"] for hit in page["data"]]
        after = {"after": page["next_cursor"]}
    assert seen == [11, 9, 7, 5, 3, 1]


def test_tenants_do_not_see_each_other(landscapes: Team, team: Team) -> None:
    assert team.search(CAPTIONS[0])["data"] == []
    own = team.add(CAPTIONS[0])
    assert [hit["image"]["id"] for hit in team.search("mountains")["data"]] == [own]


def test_a_search_needs_its_scope(landscapes: Team, make_team: Callable[[], Team]) -> None:
    from deploy.tenants import create_key
    from shared.core.settings import get_settings

    url = get_settings().database_url.get_secret_value()
    key = create_key(url, tenant="searchers-x", name="x", scopes=["jobs"])
    refused = landscapes.http.get(
        "/v1/search", params={"q": "a"}, headers={"Authorization": f"Bearer {key}"}
    )
    assert (refused.status_code, refused.json()["code"]) == (403, "insufficient_scope")
