"""Reading texts."""

from hopper_learning.features import Text, read, words


def test_identifiers_are_read_whole_and_in_parts() -> None:
    assert words("crash in ScrollableView of user_name") == (
        ["crash", "in", "scrollableview", "of", "user_name"],
        ["scrollable", "view", "user", "name"],
    )
    whole, parts = words("System.Net.Http.HttpClient")
    assert whole == ["system.net.http.httpclient"]
    assert {"system", "net", "http", "client", "system.net", "system.net.http"} <= set(parts)


def test_codes_and_versions_stay_whole() -> None:
    whole, _ = words("error ORA-12154 and E1234 after 3.2.1, HTTP 404")
    assert {"ora", "12154", "e1234", "3.2.1", "404"} <= set(whole)


def test_scripts_without_spaces_are_read_in_pairs() -> None:
    _, parts = words("画面消失")
    assert parts == ["画面", "面消", "消失"]


def test_wide_and_composed_forms_are_the_same_word() -> None:
    assert words("\uff21\uff30\uff29 Cafe\u0301")[0] == words("API Caf\u00e9")[0]


def test_title_tags_and_requester_are_told_from_the_description() -> None:
    reading = read(Text("Fix login", "see page", ("type:Bug",), "ann").cut())
    assert {"t:fix", "t:login", "b:fix login", "g:type:bug", "r:ann"} <= set(reading.head)
    assert {"fix", "login", "page"} <= set(reading.body)
    assert len(set(reading.head)) == len(reading.head)


def test_long_texts_are_cut_before_they_are_read() -> None:
    cut = Text("t" * 10**6, "d" * 10**6, ["x" * 10**6] * 10**3, "r" * 10**6).cut()
    assert len(cut.title) + len(cut.description) + len(cut.requester) + sum(map(len, cut.tags)) < 6_000
    assert hash(cut)
