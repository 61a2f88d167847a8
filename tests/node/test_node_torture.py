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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_lost_or_damaged_journal_a_full_disk_and_a_clock_put_back_lose_and_double_nothing(
    tmp_path,
):
    """Each of the five once; the benchmark does it on a larger scale, and on a real small disk."""
    size = {"instances": 300, "series": 4, "kills": 10, "trouble_every": 2, "full_s": 12.0}
    plan = Plan(seed=3, longest_s=600, **size)
    seen = Torture(plan, tmp_path).run()
    assert not seen.wrong, str(seen)
    assert seen.accepted == seen.objects == plan.instances
    assert seen.kills == plan.kills
    assert set(seen.troubles.values()) == {1}
    assert len(seen.troubles) == 5
    assert seen.rebuilds >= 2, "without its journal or its log it does not start"
    noticed = seen.starts_on_a_full_disk + seen.events["crashed"] + seen.events["full"]
    assert noticed, "the disk was full while something was to be written"
