from udfs.features.isolation import RowFailure


def double_but_7(number: int) -> int:
    if number == 7:
        raise ValueError("seven")
    return 2 * number


def test_a_failing_row_costs_that_row_alone(run_isolated_counted):
    results, _ = run_isolated_counted([1, 7, 3], double_but_7, micro_batch=3)

    assert results == [2, RowFailure("ValueError: seven"), 6]


def test_only_the_forward_pass_of_a_failing_row_is_computed_again(run_isolated_counted):
    results, computed = run_isolated_counted([*range(100)], double_but_7, micro_batch=4)

    assert sum(isinstance(result, RowFailure) for result in results) == 1
    assert computed == 100 + 4 + 2  # rows 4 to 7 again as two pairs, then 6 and 7 one by one


def test_a_failure_that_is_told_for_its_row_makes_nothing_be_computed_again(run_isolated_counted):
    failure = RowFailure("not finite")

    results, computed = run_isolated_counted(
        [1, 7, 3], lambda number: failure if number == 7 else number, micro_batch=3
    )

    assert (results, computed) == ([1, failure, 3], 3)


def test_every_row_may_fail(run_isolated_counted):
    results, _ = run_isolated_counted([7, 7, 7], double_but_7, micro_batch=2)

    assert results == [RowFailure("ValueError: seven")] * 3


def test_no_rows_give_no_results(run_isolated_counted):
    assert run_isolated_counted([], double_but_7, micro_batch=2) == ([], 0)
