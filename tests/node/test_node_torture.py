"""Nothing is lost, doubled or changed, wherever the node is killed; a tenth of the benchmark."""

import pytest
from torture import Plan, Torture


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "commitment"), [(1, False), (3, True)])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_accepted_instance_arrives_as_one_object_although_the_node_is_killed(
    tmp_path, seed, commitment
):
    told = {"instances": 500, "series": 4, "kills": 5, "longest_s": 400}
    plan = Plan(seed=seed, commitment=commitment, **told)
    seen = Torture(plan, tmp_path).run()
    assert not seen.wrong, str(seen)
    assert seen.accepted == seen.objects == plan.instances
    assert seen.kills == plan.kills
    assert seen.archive_kills > 0
    assert seen.archive_down > 0.1
    assert seen.sent_again >= plan.instances // 20 - 4
