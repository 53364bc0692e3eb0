"""The original's side of ``recsim_parity.py``: plays RecSim itself, unchanged, and writes the episodes.

``python benchmarks/recsim_original.py JOB OUT`` runs inside the virtual environment that ``recsim_parity.py`` makes: it
needs ``recsim`` and its old pins, and nothing of feedgym. JOB is a JSON object; see ``recsim_parity.Job``.

Two modules that the environments import but never use are replaced by empty ones: ``gin.tf`` would load TensorFlow, and
``recsim.simulator.runner_lib`` (the agents' training loop) Dopamine too. RecSim's users, documents, choices and
environments are its own code.
"""

import json
import sys
import time
import types
import warnings

warnings.filterwarnings("ignore")
import gin  # noqa: E402
import numpy as np  # noqa: E402

gin.tf = sys.modules["gin.tf"] = types.ModuleType("gin.tf")
sys.modules["recsim.simulator.runner_lib"] = types.ModuleType("runner_lib")
from recsim.environments import interest_evolution, interest_exploration, long_term_satisfaction  # noqa: E402

FAMILIES = {
    "interest_evolution": interest_evolution,
    "interest_exploration": interest_exploration,
    "long_term_satisfaction": long_term_satisfaction,
}


def make(job, seed):
    """An environment with its own documents and users.

    RecSim gives the samplers of documents and users the same seed, or none, so that catalogues and users would be
    correlated; here each draws from its own stream.
    """
    np.random.seed(seed)  # noqa: NPY002 (RecSim's users choose by the global generator)
    config = {
        "num_candidates": job["num_items"],
        "slate_size": job["slate_size"],
        "resample_documents": False,
        "seed": seed,
    }
    env = FAMILIES[job["family"]].create_environment(config)
    inner = env.environment
    inner._document_sampler._rng = np.random.RandomState([seed, 1])
    inner._do_resample_documents()
    sampler = inner.user_model._user_sampler
    sampler._rng = np.random.RandomState([seed, 2])
    if job["sensitivity"] is not None:
        sampler._state_parameters["sensitivity"] = job["sensitivity"]
    return env


def greedy_scores(job, user, docs):
    """Scores by which the greedy policy ranks the candidates."""
    if job["family"] == "interest_evolution":
        return [user.user_interests[int(doc.cluster_id)] for doc in docs]
    if job["family"] == "interest_exploration":
        return [doc.quality for doc in docs]
    return [doc.clickbait_score for doc in docs]


def state_of(job, user):
    """The numbers of ``recsim_parity.STATES``."""
    if job["family"] == "interest_evolution":
        interests = user.user_interests
        return [user.time_budget, interests.mean(), np.abs(interests).mean()]
    if job["family"] == "interest_exploration":
        return list(user.topic_affinity)
    return [user.net_positive_exposure, user.satisfaction]


def play(job):
    """Episodes of ``users`` users on each of ``catalogues`` catalogues, arrays [catalogues, users, horizon, ...]."""
    shape = (job["catalogues"], job["users"], job["horizon"])
    reward, click = np.zeros(shape), np.zeros(shape, bool)
    topic, alive = np.full(shape, -1), np.zeros(shape, bool)
    state = None
    for c in range(shape[0]):
        env = make(job, job["seed"] + c)
        docs = env.environment.candidate_set.get_all_documents()
        rng = np.random.RandomState([job["seed"] + c, 3])
        for u in range(shape[1]):
            env.reset()
            user = env.environment.user_model._user_state
            for t in range(shape[2]):
                if job["policy"] == "random":
                    slate = rng.permutation(job["num_items"])[: job["slate_size"]]
                else:
                    scores = np.array(greedy_scores(job, user, docs))
                    slate = np.argsort(-scores, kind="stable")[: job["slate_size"]]
                observation, reward[c, u, t], done, _ = env.step(slate)
                alive[c, u, t] = True
                for place, response in enumerate(observation["response"]):
                    if response["click"]:
                        click[c, u, t] = True
                        topic[c, u, t] = getattr(docs[slate[place]], "cluster_id", -1)
                after = state_of(job, user)
                if state is None:
                    state = np.zeros((*shape, len(after)))
                state[c, u, t:] = after
                if done:
                    break
    return {"reward": reward, "click": click, "topic": topic, "alive": alive, "state": state}


def steps_per_second(job):
    """RecSim's steps per second through its Gym interface, with random slates made beforehand."""
    env = make(job, job["seed"])
    rng = np.random.RandomState(0)
    slates = [rng.permutation(job["num_items"])[: job["slate_size"]] for _ in range(256)]
    env.reset()
    begin, steps = time.process_time(), 0
    while (passed := time.process_time() - begin) < job["seconds"]:
        _, _, done, _ = env.step(slates[steps % 256])
        steps += 1
        if done:
            env.reset()
    return {"steps_per_second": np.array(steps / passed)}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    np.savez_compressed(sys.argv[2], **(steps_per_second(given) if given["policy"] == "speed" else play(given)))
