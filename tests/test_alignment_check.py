"""Conformance of methods of alignment: sound ones pass, and each broken one is told what to change."""

import pytest
import torch
from my_lab.method import BestSession
from toy_agents import toy_histories

from feedgym.agents.alignment.check import check_method
from feedgym.agents.alignment.dpo import DPO

CONTENT = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
HISTORIES = toy_histories(5, num_items=60)


@pytest.mark.parametrize("kind", [BestSession, pytest.param(DPO, marks=pytest.mark.slow)])
def test_sound_methods_pass(kind):
    check_method(kind, HISTORIES, CONTENT, (3, 2))


class Idle(BestSession):
    def update(self, model, histories, sampled, logged_UK, work, progress=None):
        return {"loss": 0.0}


class Short(BestSession):
    def update(self, model, histories, sampled, logged_UK):
        return {}


class Rescaling(BestSession):
    def update(self, model, histories, sampled, *given):
        sampled.score_US.sub_(sampled.score_US.mean(1, keepdim=True))
        return super().update(model, histories, sampled, *given)


class Dicey(BestSession):
    draws = torch.Generator().manual_seed(0)

    def update(self, model, *given):
        metrics = super().update(model, *given)
        with torch.no_grad():
            model.lm_head.weight.mul_(1 + 0.1 * torch.rand(1, generator=self.draws))
        return metrics


class Tensors(BestSession):
    def update(self, *given):
        return {name: torch.tensor(value) for name, value in super().update(*given).items()}


class Undefined(BestSession):
    def update(self, *given):
        return {**super().update(*given), "gain": float("nan")}


class Silent(BestSession):
    def update(self, model, histories, sampled, logged_UK, work, progress=None):
        return super().update(model, histories, sampled, logged_UK, work)


class Overdone(BestSession):
    def update(self, model, histories, sampled, logged_UK, work, progress=None):
        def beyond(done, total, figures):
            progress(done + 1, total, figures)

        return super().update(model, histories, sampled, logged_UK, work, beyond if progress else None)


class Training(BestSession):
    def update(self, model, *given):
        metrics = super().update(model, *given)
        model.train()
        return metrics


class WithoutDropout(BestSession):
    def update(self, model, *given):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return super().update(model, *given)


class Littering(BestSession):
    def update(self, *given):
        with open("log.txt", "w") as file:
            file.write("here I was")
        return super().update(*given)


class Normalising(BestSession):
    """Divides by the spread of the scores."""

    def update(self, model, histories, sampled, *given):
        metrics = super().update(model, histories, sampled, *given)
        with torch.no_grad():
            model.lm_head.weight.div_(sampled.score_US.std(1).mean())
        return metrics


class Demanding(BestSession):
    def update(self, model, histories, sampled, *given):
        if not sampled.score_US.std():
            raise ZeroDivisionError("no spread.")
        return super().update(model, histories, sampled, *given)


class Reading(BestSession):
    def update(self, model, histories, *given):
        assert histories.mask_UT.any()
        return super().update(model, histories, *given)


BROKEN = [
    (Idle, "did not change the model it was given, though the scores differ; train it in place"),
    (Short, r"update\(\) cannot be called .*; let it take \(model, histories, sampled, logged_UK, work, progress"),
    (Rescaling, "changed the sampled it was given; work on copies"),
    (Dicey, "made other weights of the same round the second time; draw every random number"),
    (Tensors, r"returned first_loss=a Tensor; return finite Python numbers"),
    (Undefined, "returned gain=nan; return finite"),
    (Silent, "never called progress; call it after each step"),
    (Overdone, r"called progress\(2, 1\) after 0 steps"),
    (Training, r"left the model with other training flags.*end with model.eval\(\)"),
    (WithoutDropout, "left the model with other training flags, dropout rates"),
    (Littering, "left log.txt outside of its folder; write only into work"),
    (Normalising, "If all sessions of a user have the same score: .* weights that are not finite"),
    (Reading, r"used histories.mask_UT, but .* take them as histories.rows\(idx\)"),
    (Demanding, "If all sessions of a user have the same score: no spread. Skip such users"),
]


@pytest.mark.parametrize(("broken", "message"), BROKEN, ids=[broken.__name__ for broken, _ in BROKEN])
def test_a_broken_method_is_told_what_to_change(broken, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_method(broken, HISTORIES, CONTENT, (3, 2))
    assert "\n" not in str(caught.value)


def test_a_class_without_update_is_told_so():
    with pytest.raises(ValueError, match=r"object has no update\(\); see feedgym.protocols.AlignmentMethod"):
        check_method(object, HISTORIES, CONTENT, (3, 2))
