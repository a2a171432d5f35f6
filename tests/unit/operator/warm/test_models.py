"""Which model a warm pod is asked to load or unload, and what gives way: loans first, and never what serves."""

from typing import Any

from rerank_api.warm_pool import PreloadedModel
from rerank_operator.warm.admin import ModelFact
from rerank_operator.warm.members import Member
from rerank_operator.warm.models import (
    CLEARLY_SECONDS,
    LOOK_SECONDS,
    Failure,
    Failures,
    Job,
    Load,
    Look,
    Unload,
    Worker,
    jobs,
    kept,
    place,
    unused_preloads,
)
from rerank_operator.warm.observe import WarmPod
from unit.operator.warm.pool import NOW, holding, lent, member, model, pod, served, spec, state

NONE = spec(preload=[])


def asked(
    *pods: WarmPod,
    members: list[Member],
    workers: dict[str, Worker],
    of=NONE,
    failures: Failures | None = None,
    running: dict[str, Job] | None = None,
    now: float = NOW,
) -> tuple[Job, ...]:
    return jobs(state(*pods), members, of, workers, failures or {}, running or {}, now)


def failure(until: float) -> Failure:
    return Failure(1, NOW - 1, until, "refused", {"uid-1": None})


def test_a_worker_that_nobody_knows_is_looked_at_first():
    assert asked(pod(1), members=[], workers={}) == (Look(pod(1)),)
    again = pod(1, restarts=2)
    assert asked(again, members=[], workers={"uid-1": holding(restarts=1)}) == (Look(again),)
    assert asked(pod(1, ready=False), members=[], workers={}) == ()


def test_and_again_after_a_while():
    workers = {"uid-1": holding()}
    assert asked(pod(1), members=[], workers=workers) == ()
    assert asked(pod(1), members=[], workers=workers, now=NOW + LOOK_SECONDS) == (Look(pod(1)),)


def test_one_that_does_not_answer_is_left_alone_for_a_while():
    failures = {place("uid-1", ""): failure(NOW + 5)}
    assert asked(pod(1), members=[], workers={}, failures=failures) == ()
    assert asked(pod(1), members=[], workers={}, failures=failures, now=NOW + 5) == (Look(pod(1)),)


def test_but_a_loan_does_not_wait_for_it_and_finds_out():
    lent_pod = pod(1, loan=lent("a"))
    (job,) = asked(lent_pod, members=[member("a", 1)], workers={}, failures={place("uid-1", ""): failure(NOW + 5)})
    assert isinstance(job, Load)
    assert job.loan == NOW - 10


def test_a_load_that_has_failed_for_this_loan_is_not_tried_again_for_it():
    lent_pod, members = pod(1, loan=lent("a", NOW + 60)), [member("a", 1)]
    for where in (model("a"), place("uid-1", "")):
        failures = {where: Failure(1, NOW - 1, NOW - 1, "refused", {"uid-1": NOW + 60})}
        assert asked(lent_pod, members=members, workers={"uid-1": holding()}, failures=failures) == ()
        failures = {where: Failure(1, NOW - 1, NOW - 1, "refused", {"uid-1": NOW})}
        assert len(asked(lent_pod, members=members, workers={"uid-1": holding()}, failures=failures)) == 1


def test_what_else_is_in_hand_gives_way_to_the_load_for_a_loan():
    def load(loan: float | None) -> Load:
        return Load(pod(1), model("b"), served("b").config, (), 8, loan)

    lent_pod, workers = pod(1, loan=lent("a", NOW)), {"uid-1": holding(model("c"))}
    members = [member("a", 1), member("c")]
    for in_hand in (load(None), load(NOW - 60), Unload(pod(1), model("b"))):
        (job,) = asked(lent_pod, members=members, workers=workers, running={"uid-1": in_hand})
        assert isinstance(job, Load)
        assert (job.key, job.loan) == (model("a"), NOW)
        left = (model("b"),) if isinstance(in_hand, Load) else ()
        assert job.evictable == (model("c"), *left)
        assert asked(pod(1), members=members, workers=workers, running={"uid-1": in_hand}) == ()
    for in_hand in (load(NOW), Look(pod(1))):
        assert asked(lent_pod, members=members, workers=workers, running={"uid-1": in_hand}) == ()


def test_a_claimed_pod_loads_the_model_even_where_it_seems_to_have_it():
    lent_pod = pod(1, model("a"), loan=lent("a"))
    (job,) = asked(lent_pod, members=[member("a", 1)], workers={"uid-1": holding(model("a"))})
    assert isinstance(job, Load)
    assert (job.key, job.loan, job.config.reranker) == (model("a"), NOW - 10, "a")


def test_and_only_once():
    loan = lent("a")
    workers = {"uid-1": holding(model("a"), loaded=(model("a"), loan.since))}
    assert asked(pod(1, loan=loan), members=[member("a", 1)], workers=workers) == ()
    job = Look(pod(1))
    assert asked(pod(1, loan=loan), members=[member("a", 1)], workers={}, running={"uid-1": job}) == ()


def test_a_new_leader_leaves_what_serves_alone():
    serving = pod(1, loan=lent("a", serving=True))
    assert asked(serving, members=[member("a", 1)], workers={"uid-1": holding(model("a"))}) == ()


def test_a_loan_whose_revision_has_changed_loads_the_new_one():
    serving = pod(1, loan=lent("a", serving=True))
    (job,) = asked(serving, members=[member("a", 1, revision="r2")], workers={"uid-1": holding(model("a"))})
    assert isinstance(job, Load)
    assert job.key == model("a", "r2")
    assert job.evictable == ()  # what serves stays until the new one does


def test_what_gives_way_first_what_nobody_uses_then_the_least_recently_used_then_what_is_kept():
    members = [
        member("new", 1),
        member("long", last_request=NOW - 900),
        member("short", last_request=NOW - 60),
        member("kept", last_request=NOW - 1000),
    ]
    of = spec(preload=[PreloadedModel("file:///models/kept")])
    has = [model("kept"), model("short"), model("gone"), model("long")]
    (job,) = asked(pod(1, loan=lent("new")), members=members, workers={"uid-1": holding(*has)}, of=of)
    assert isinstance(job, Load)
    assert job.evictable == (model("gone"), model("long"), model("short"), model("kept"))


def test_a_model_that_nobody_uses_is_unloaded_from_a_free_pod():
    workers = {"uid-1": holding(model("a"), model("a", "old"))}
    assert asked(pod(1), members=[member("a")], workers=workers) == (Unload(pod(1), model("a", "old")),)


def test_a_failed_one_too():
    worker = Worker(0, NOW, (ModelFact(model("b"), "failed"),))
    assert asked(pod(1), members=[], workers={"uid-1": worker}) == (Unload(pod(1), model("b")),)


# --- models that are kept ready ---


def test_without_a_list_the_most_recently_used_are_kept():
    members = [member("a", last_request=1), member("b", last_request=3), member("c", last_request=2), member("d")]
    assert [one.key for one in kept(members, spec(max_models_per_pod=2))] == [model("b"), model("c")]
    assert kept([member("a", able=False)], spec()) == ()


def test_a_list_names_models_and_what_is_no_rerankers_is_told():
    of = spec(preload=[PreloadedModel("file:///models/a"), PreloadedModel("file:///models/x")])
    members = [member("a"), member("b")]
    assert [one.key for one in kept(members, of)] == [model("a")]
    assert unused_preloads(members, of) == ("file:///models/x",)
    assert unused_preloads(members, spec()) == ()


def test_free_pods_are_filled_half_of_them_at_a_time_and_lent_ones_are_not():
    pods = [pod(i) for i in range(1, 5)]
    workers = {one.uid: holding() for one in (*pods, pod(5))}
    found = asked(*pods, pod(5, loan=lent("a")), members=[member("a")], workers=workers, of=spec())
    assert [job.pod.name for job in found] == ["pod-5", "pod-1", "pod-2"]
    first = found[1]
    rest = asked(*pods, members=[member("a")], workers=workers, of=spec(), running={"uid-1": first})
    assert [job.pod.name for job in rest] == ["pod-2"]


def test_what_another_pool_loads_does_not_count():
    (elsewhere,) = asked(pod(9), members=[member("a")], workers={"uid-9": holding()}, of=spec())
    (job,) = asked(pod(1), members=[member("a")], workers={"uid-1": holding()}, of=spec(), running={"uid-9": elsewhere})
    assert job.pod.name == "pod-1"


def test_the_only_free_pod_is_filled_too():
    (job,) = asked(pod(1), members=[member("a")], workers={"uid-1": holding()}, of=spec())
    assert isinstance(job, Load)
    assert (job.key, job.loan) == (model("a"), None)


def test_more_busy_rerankers_than_places_do_not_take_turns():
    of, models, loads = spec(max_models_per_pod=8), [], []
    last = {f"m{i:02}": NOW for i in range(12)}
    for step in range(200):
        name = f"m{step % 12:02}"
        last[name] = NOW + 15.0 * step
        members = [member(one, last_request=at) for one, at in last.items()]
        for job in asked(pod(1), members=members, workers={"uid-1": holding(*models)}, of=of):
            assert isinstance(job, Load)
            loads.append(job.key)
            if len(models) == 8:
                models.remove(job.evictable[0])
            models.append(job.key)
    assert len(loads) == 8


def test_who_was_used_clearly_more_recently_takes_the_place_of_who_was_used_least():
    def found(newest: float, **of: Any) -> tuple[Job, ...]:
        members = [member("old", last_request=1.0), member("older", last_request=0.0)]
        members.append(member("new", last_request=newest))
        workers = {"uid-1": holding(model("old"), model("older"))}
        return asked(pod(1), members=members, workers=workers, of=spec(max_models_per_pod=2, **of))

    assert found(CLEARLY_SECONDS - 1) == ()
    (job,) = found(CLEARLY_SECONDS)
    assert isinstance(job, Load)
    assert (job.key, job.evictable) == (model("new"), (model("older"),))
    (named,) = found(0.0, preload=[PreloadedModel("file:///models/new")])  # whoever lists models means those
    assert isinstance(named, Load)
    assert named.evictable == (model("older"), model("old"))


def test_what_is_kept_never_gives_way_to_what_is_kept():
    members = [member("a", last_request=NOW), member("b", last_request=NOW - 1), member("c")]
    of = spec(max_models_per_pod=2)
    (job,) = asked(pod(1), members=members, workers={"uid-1": holding(model("a"), model("c"))}, of=of)
    assert isinstance(job, Load)
    assert (job.key, job.evictable, job.most) == (model("b"), (model("c"),), 2)


def test_a_model_that_a_pod_could_not_load_is_tried_there_again_after_a_while_only():
    failures = {place("uid-1", model("a")): failure(NOW + 60)}
    workers = {"uid-1": holding(), "uid-2": holding()}
    found = asked(pod(1), pod(2), members=[member("a")], workers=workers, of=spec(), failures=failures)
    assert [job.pod.name for job in found] == ["pod-2"]
