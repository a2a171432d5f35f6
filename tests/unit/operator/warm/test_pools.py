"""What keeps a Reranker from the warm pods that it wishes for is told in its own condition."""

from kubernetes.aio.client import Configuration
from rerank_operator.controller.api import KubeApi
from rerank_operator.controller.conditions import scaling_message
from rerank_operator.controller.kinds import RERANKERS, WARM_POOLS
from rerank_operator.controller.pools import Pools
from rerank_operator.controller.store import Store
from rerank_operator.controller.verdict import Verdict
from rerank_operator.scaling.decide import Decision, Memory
from rerank_operator.warm.observe import Wish
from unit.operator.build import WORKER
from unit.operator.warm.pool import NAMESPACE, reranker, warm_pool


class Nobody:
    def wishes(self, namespace: str, pool: str) -> list[Wish]:
        return []


async def test_a_pool_that_is_not_there_is_told():
    store = Store()
    api = KubeApi(Configuration())

    async def unheard(*_: object) -> None:
        pass

    pools = Pools(api, store, Nobody(), WORKER, b"key", "me", lambda _: None, unheard)
    try:
        key = (NAMESPACE, "a")
        assert pools.waiting(key) is None
        store.seen(RERANKERS, False, reranker("a"))
        assert pools.waiting(key) == (
            "there is no WarmPool shared in namespace search: create it, or correct spec.scaling.warmPool"
        )
        store.seen(WARM_POOLS, False, warm_pool())
        assert pools.waiting(key) is None
    finally:
        pools.queue.close()
        await pools.run()
        await api.close()


def test_and_stands_in_the_message_of_its_condition():
    decision = Decision(1, 2, "Steady", "it is what is needed", Memory(), 1.0)
    verdict = Verdict("Auto", 1, 2, decision, short="WarmPool shared: none is free")
    assert scaling_message(verdict).endswith("it is what is needed. Too few warm pods: WarmPool shared: none is free")
