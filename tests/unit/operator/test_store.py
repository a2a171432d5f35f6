"""The store: the newest version wins, whatever the order in which watch, lists and own writes tell it."""

from typing import Any

from rerank_operator.controller.kinds import PODS, RERANKERS
from rerank_operator.controller.store import Store
from unit.operator.build import KEY, NAME, NAMESPACE, pod, reranker


def at(version: int, body: dict[str, Any]) -> dict[str, Any]:
    return body | {"metadata": body["metadata"] | {"resourceVersion": str(version)}}


def listed(store: Store, version: int, *bodies: dict[str, Any], namespace: str | None = None) -> set[Any]:
    return store.listed(PODS, namespace, bodies, str(version), store.before_list(PODS))


def test_an_older_version_brings_nothing_new():
    store = Store()
    assert store.seen(RERANKERS, False, at(5, reranker(replicas=5))) == KEY
    assert store.seen(RERANKERS, False, at(4, reranker(replicas=4))) is None
    assert store.seen(RERANKERS, False, at(5, reranker(replicas=5))) is None
    found = store.get(RERANKERS, *KEY)
    assert found is not None
    assert found["spec"]["replicas"] == 5


def test_children_are_found_by_label_and_go_with_their_deletion():
    store = Store()
    assert store.seen(PODS, False, at(2, pod("abc", 0))) == KEY
    assert store.seen(PODS, False, at(3, pod("abc", 1))) == KEY
    assert [p["metadata"]["name"] for p in store.children(PODS, KEY)] == [f"{NAME}-abc-0", f"{NAME}-abc-1"]
    assert store.seen(PODS, True, at(4, pod("abc", 0))) == KEY
    assert [p["metadata"]["name"] for p in store.children(PODS, KEY)] == [f"{NAME}-abc-1"]


def test_a_list_removes_what_the_watch_missed_and_adds_what_it_did_not_show():
    store = Store()
    store.seen(PODS, False, at(2, pod("abc", 0)))
    assert listed(store, 9, at(8, pod("abc", 1))) == {KEY}
    assert [p["metadata"]["name"] for p in store.children(PODS, KEY)] == [f"{NAME}-abc-1"]
    assert listed(store, 10, at(8, pod("abc", 1))) == set()


def test_a_list_is_no_news_about_what_came_after_it():
    store = Store()
    known = store.before_list(PODS)
    store.seen(PODS, False, at(12, pod("abc", 0)))
    store.listed(PODS, None, [], "10", known)
    assert len(store.children(PODS, KEY)) == 1


def test_a_list_does_not_bring_back_what_was_deleted_meanwhile():
    store = Store()
    store.seen(PODS, False, at(2, pod("abc", 0)))
    known = store.before_list(PODS)
    store.seen(PODS, True, at(11, pod("abc", 0)))
    store.listed(PODS, None, [at(2, pod("abc", 0))], "10", known)
    assert store.children(PODS, KEY) == []


def test_a_list_of_one_namespace_says_nothing_about_another():
    store = Store()
    store.seen(PODS, False, at(2, pod("abc", 0)))
    listed(store, 9, namespace="elsewhere")
    assert len(store.children(PODS, KEY)) == 1
    listed(store, 10, namespace=NAMESPACE)
    assert store.children(PODS, KEY) == []


def test_a_watch_that_shows_nothing_falls_behind_with_each_list():
    store = Store()
    for version in (10, 11, 12):
        listed(store, version, at(8, pod("abc", 0)))
    assert store.lag() == (3, "Pod")
    store.seen(PODS, False, at(8, pod("abc", 0)))
    assert store.lag() == (0, "")


def test_our_own_writes_must_come_back_through_the_watch_too():
    store = Store()
    store.learned(PODS, at(3, pod("abc", 0)))
    listed(store, 9, at(3, pod("abc", 0)))
    assert store.lag() == (1, "Pod")
    store.seen(PODS, False, at(4, pod("abc", 0)))
    assert store.lag() == (0, "")


def test_managed_fields_are_not_kept():
    store = Store()
    body = at(2, pod("abc", 0))
    body["metadata"]["managedFields"] = [{"manager": "kubelet"}]
    store.seen(PODS, False, body)
    assert "managedFields" not in store.children(PODS, KEY)[0]["metadata"]
