"""How many replicas a steady load needs: the theory of waiting lines. Pure numbers; no policy, no history.

Replicas that share one queue need far less room the more there are: one replica that is to answer in time may be busy
half of the time, ten may be busy nine tenths of it. A fixed target of utilisation is too much for one and too little
for ten, which is why the number is computed.
"""

import math


def replicas_for(load: float, service: float, longest_wait: float, exceeded: float, most: int) -> int:
    """The fewest replicas, up to ``most`` and at least one, that serve ``load`` with short enough waits.

    ``load``: work that arrives, in replicas (tokens/s divided by the tokens/s of one); ``service``: seconds that one
    request keeps one replica busy, on average; ``longest_wait``: seconds that at most a share ``exceeded`` of the
    requests may wait longer than.

    Erlang's C formula: requests arrive independently, service times are exponential (documents' lengths vary about as
    much), one queue in front of all replicas. With c replicas a request waits at all with probability C(c, load), and
    longer than t with C * exp(-(c - load) * t / service).

    Worked, for service 0.1 s and 5 % longer than 0.4 s: one replica is enough up to a load of 0.45, two up to 1.39,
    three up to 2.37, ten up to 9.32.
    """
    blocked, replicas = 1.0, 0  # Erlang's B, by its recursion from no replica upwards
    while replicas < most:
        replicas += 1
        blocked = load * blocked / (replicas + load * blocked)
        spare = replicas - load
        if spare <= 0:
            continue
        waits = blocked * replicas / (spare + load * blocked)
        if waits * math.exp(-spare * longest_wait / service) <= exceeded:
            break
    return replicas
