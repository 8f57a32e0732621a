"""Which cases Numba's simulator of a device runs.

It takes 0.4 µs an element, and 20 to 250 ms a block: what differs in nothing that a kernel sees is
left to the other environments. A test that is not named here runs with all of its cases.
"""

import numpy as np

from arrays import DTYPES

MAX_EXAMPLES = 20
FLOAT16, BFLOAT16, FLOAT32, FLOAT64 = DTYPES
# One of the three modes of a layer, which has all of its weights.
SEPARATE = {"mode": ["separate"]}

# By file and test: for each parameter the values of the cases that run; None for no case.
CASES = {
    "test_forward_backward": {
        "test_shapes": {"renorm": [True], "axis": [-1, 0, 1, [1, 3], [2, 1]]},
        "test_shapes_of_several_blocks": {
            "dtype": [FLOAT32],
            "shape": [(700, 12), (3, 400), (2100, 3), (2, 2, 2600), (30, 40, 5), (2, 9, 16)],
        },
        "test_large_shapes": None,
        "test_large_shapes_in_place": None,
        "test_masked_vectors": {"dtype": [FLOAT16, BFLOAT16, FLOAT64]},
        "test_mask_forms": {"dtype": [FLOAT32], "width": [8]},
        "test_results_have_the_memory_order_of_x": {"dtype": [FLOAT32]},
        "test_views": {"dtype": [FLOAT16, FLOAT32], "masked": [True]},
        "test_out_is_filled_and_returned": {"dtype": [FLOAT32]},
        "test_dx_over_its_inputs": {
            "dtype": [FLOAT32],
            "order_of_x": [np.array],
            "mask_shape": [None, (6, 5, 4), (24, 16)],
        },
        "test_backward_takes_x_in_another_memory_order_than_forward": {
            "mask_shape": [None, (6, 5, 4)]
        },
        "test_backward_from_plain_arrays": {"mask_shape": [(6, 5, 4)]},
        "test_missing_gamma_is_one_and_missing_beta_zero": None,
        "test_a_saved_forward_serves_many_backward_calls": None,
    },
    "test_invariants": dict.fromkeys(
        [
            "test_output_has_zero_mean_and_unit_variance",
            "test_permuting_the_batch_permutes_the_output",
            "test_shifting_the_input_changes_nothing",
            "test_the_gradient_is_orthogonal_to_shifts_and_nearly_to_scaling",
            "test_masked_out_positions_change_no_statistic_but_are_normalized",
        ]
    ),
    "test_accuracy": {
        "test_statistics": None,
        "test_normalize": None,
        "test_forward_and_backward": {"offset": [0.0, 1e4, 1e6]},
        "test_a_masked_out_outlier_spoils_nothing": {"width": [4]},
        "test_a_lone_outlier_before_masked_out_positions": None,
    },
    "test_masks": {
        "test_what_is_under_the_mask_reaches_nothing": {
            "dtype": [FLOAT32],
            "width": [16],
            "garbage": [np.nan, np.inf],
        },
        "test_everything_masked": {
            "dtype": [FLOAT64],
            "mask_shape": [(6, 5), (6, 5, 4), (1, 1, 1)],
        },
        "test_padding_changes_nothing": None,
        "test_masked_out_positions_have_an_exact_gradient": None,
        "test_one_fully_masked_channel": None,
        "test_a_mask_of_one_axis_less_gets_a_trailing_axis_whatever_axis_is": None,
        "test_a_broadcast_mask_is_the_expanded_mask": None,
        "test_a_mask_that_is_all_on_is_no_mask": None,
    },
    "test_normalize": {
        "test_every_result_agrees_with_the_oracle": None,
        "test_normalize_into_its_own_input": {"dtype": [FLOAT32]},
        "test_normalize_into_out": {"dtype": [FLOAT32]},
        "test_dx_over_its_inputs": {"dtype": [FLOAT32]},
        "test_parameters_may_have_any_float_dtype": None,
        "test_every_16_bit_value_is_read_and_rounded_as_numpy_does": None,
    },
    "test_renorm": {
        "test_correction_agrees_with_the_oracle": {"shape": [(1, 4, 3)], "epsilon": [1e-3]},
    },
    "test_statistics": {
        "test_statistics_agree_with_the_oracle": None,
        "test_statistics_of_parts_merge_to_those_of_the_whole": None,
        "test_merging_does_not_cancel_at_a_large_offset": None,
    },
    "test_layer": {
        "test_training_steps_agree_with_the_oracle": {
            "dtype": [FLOAT32],
            "masked": ["but a channel"],
        },
        "test_training_converges_to_the_statistics_of_the_data": None,
        "test_inference_normalizes_with_the_moving_statistics": SEPARATE,
        "test_a_frozen_layer_runs_in_inference_mode": SEPARATE,
        "test_backward_of_a_frozen_layer_is_the_inference_gradient": SEPARATE,
        "test_a_channel_without_positions_moves_nothing": SEPARATE,
        "test_an_empty_batch_moves_nothing": SEPARATE,
        "test_nan_padding_moves_nothing": SEPARATE,
        "test_save_and_load": SEPARATE,
        "test_copies_and_pickles_are_in_numpy_and_go_on_like_the_layer": SEPARATE,
        "test_center_and_scale": None,
        "test_dtype_of_weights_follows_the_input_or_is_given": None,
        "test_a_layer_with_reuse_takes_its_own_gradient": {"trainable": [True]},
        "test_two_layers_with_reuse_in_a_row": None,
        "test_reused_outputs_hold_the_same_values": {
            "dtype": [FLOAT32],
            "axis": [-1],
            "memory": [(2, 0, 1)],
        },
    },
}


def runs_in_simulation(item):
    """Whether a test runs there."""
    wanted = CASES.get(item.module.__name__, {}).get(item.originalname, {})
    if wanted is None:
        return False
    given = item.callspec.params if wanted else {}
    return all(given[parameter] in values for parameter, values in wanted.items())
