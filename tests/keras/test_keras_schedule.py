"""The ramp of renorm's limits."""

import keras
import numpy as np
import pytest
from backends import BACKEND, array, on_one_backend
from keras import layers

from numbabn.keras import BatchNormalization, RenormClippingSchedule

X = np.random.default_rng(0).normal(2, 3, (16, 6)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(16, 2)).astype(np.float32)
STEPS = {"rmax_steps": (2, 6), "dmax_steps": (4, 10)}


def model_with(**arguments):
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5), BatchNormalization(name="bn", **arguments),
         layers.Dense(2)]
    )  # fmt: skip
    model.compile("adam", "mse")
    return model


class Seen(keras.callbacks.Callback):
    """The limits of each step, as the layer has them."""

    def __init__(self):
        super().__init__()
        self.limits = []

    def on_train_batch_end(self, batch, logs=None):
        self.limits.append(dict(self.model.get_layer("bn").renorm_clipping))


@on_one_backend
def test_the_ramp_of_the_paper():
    schedule = RenormClippingSchedule()
    assert schedule.limits(0) == {"rmin": 1.0, "rmax": 1.0, "dmax": 0.0}
    assert schedule.limits(5000) == {"rmin": 1.0, "rmax": 1.0, "dmax": 0.0}
    assert schedule.limits(15000) == {
        "rmin": 1 / (1 + 4 / 7), "rmax": 1 + 4 / 7, "dmax": 2.5,
    }  # fmt: skip
    assert schedule.limits(25000)["dmax"] == 5.0
    assert schedule.limits(40000) == schedule.limits(10**9)
    assert schedule.limits(40000) == {"rmin": 1 / 3, "rmax": 3.0, "dmax": 5.0}


@on_one_backend
def test_a_step_as_ramp():
    schedule = RenormClippingSchedule(rmax_steps=(3, 3), dmax_steps=(0, 0))
    assert [schedule.limits(step)["rmax"] for step in (2, 3, 4)] == [1.0, 3.0, 3.0]
    assert schedule.limits(0)["dmax"] == 5.0


def test_in_fit():
    model, seen = model_with(renorm=True), Seen()
    schedule = RenormClippingSchedule(**STEPS)
    model.fit(X, Y, batch_size=4, epochs=3, verbose=0, callbacks=[schedule, seen])
    assert seen.limits == [schedule.limits(step) for step in range(12)]
    model.fit(X, Y, batch_size=4, epochs=1, verbose=0, callbacks=[schedule, seen])
    assert seen.limits == [schedule.limits(step) for step in range(16)]


def compiled_with(optimizer, **options):
    model = model_with(renorm=True)
    model.compile(optimizer, "mse", **options)
    return model


def test_microbatches_of_a_step_are_one_step():
    schedule, seen = RenormClippingSchedule(**STEPS), Seen()
    model = compiled_with(keras.optimizers.Adam(gradient_accumulation_steps=3))
    model.fit(X, Y, batch_size=2, epochs=2, verbose=0, callbacks=[schedule, seen])
    # Eight microbatches an epoch: the third step is of two epochs.
    assert seen.limits == [schedule.limits(batch // 3) for batch in range(16)]


def test_a_step_that_a_loss_scale_leaves_out_is_none():
    schedule, seen = RenormClippingSchedule(**STEPS), Seen()
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-3), initial_scale=1.0)
    y = Y.copy()
    y[[2, 5]] = np.nan  # The second and the third batch have no gradient that is finite.
    compiled_with(scaled).fit(
        X, y, batch_size=2, epochs=2, verbose=0, shuffle=False, callbacks=[schedule, seen]
    )
    taken = [0, 1, 1, 1, 2, 3, 4, 5]
    assert seen.limits == [schedule.limits(step) for step in [*taken, *(6 + i for i in taken)]]


@pytest.mark.skipif(BACKEND == "torch", reason="Keras runs steps one by one there")
def test_steps_that_run_as_one():
    schedule, seen = RenormClippingSchedule(**STEPS), Seen()
    model = compiled_with("adam", steps_per_execution=2)
    model.fit(X, Y, batch_size=2, epochs=2, verbose=0, callbacks=[schedule, seen])
    assert seen.limits == [schedule.limits(step) for step in range(0, 16, 2)]


def test_beyond_the_ramps_no_step_is_waited_for(monkeypatch):
    schedule, seen, asked = RenormClippingSchedule(rmax_steps=(0, 2), dmax_steps=(0, 3)), Seen(), []
    step = schedule._step
    monkeypatch.setattr(schedule, "_step", lambda: asked.append(step()) or asked[-1])
    model_with(renorm=True).fit(X, Y, batch_size=2, epochs=2, verbose=0, callbacks=[schedule, seen])
    assert asked == [0, 1, 2, 3, 8]
    assert seen.limits == [schedule.limits(step) for step in range(16)]


def test_plain_batch_normalization_before_the_ramp():
    ours, plain = BatchNormalization(renorm=True), BatchNormalization()
    ours.renorm_clipping = RenormClippingSchedule().limits(0)
    results = [array(layer(X * 4 + 1, training=True)) for layer in (ours, plain)]
    np.testing.assert_array_equal(*results)


def test_goes_on_with_a_saved_optimizer(tmp_path):
    model = model_with(renorm=True)
    schedule = RenormClippingSchedule(**STEPS)
    model.fit(X, Y, batch_size=4, epochs=1, verbose=0, callbacks=[schedule])
    model.save(tmp_path / "model.keras")
    loaded, seen = keras.saving.load_model(tmp_path / "model.keras"), Seen()
    again = RenormClippingSchedule(**STEPS)
    loaded.fit(X, Y, batch_size=4, epochs=1, verbose=0, callbacks=[again, seen])
    assert seen.limits == [schedule.limits(step) for step in range(4, 8)]


class Interrupt(keras.callbacks.Callback):
    """Ends the second epoch halfway, as a crash would."""

    def on_train_batch_end(self, batch, logs=None):
        if int(self.epoch) == 1 and batch == 2:
            raise KeyboardInterrupt

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch


@pytest.mark.parametrize("first", [True, False])
def test_backup_and_restore(first, tmp_path):
    schedule = RenormClippingSchedule(**STEPS)

    def callbacks(*others):
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        pair = [schedule, backup] if first else [backup, schedule]
        return [*pair, *others]

    with pytest.raises(KeyboardInterrupt):
        model_with(renorm=True).fit(
            X, Y, batch_size=4, epochs=3, verbose=0, callbacks=callbacks(Interrupt())
        )
    seen = Seen()
    model_with(renorm=True).fit(X, Y, batch_size=4, epochs=3, verbose=0, callbacks=callbacks(seen))
    # The backup is of the end of the first epoch.
    assert seen.limits == [schedule.limits(step) for step in range(4, 12)]


@on_one_backend
def test_needs_a_renorm_layer():
    with pytest.raises(
        ValueError,
        match=r"^RenormClippingSchedule needs a model with a numbabn\.keras\.BatchNormalization "
        r"with renorm=True, and 'sequential(_\d+)?' has none: see numbabn\.keras\.convert$",
    ):
        model_with().fit(X, Y, verbose=0, callbacks=[RenormClippingSchedule()])


@on_one_backend
def test_needs_an_optimizer():
    schedule, model = RenormClippingSchedule(), model_with(renorm=True)
    model.optimizer = None
    schedule.set_model(model)
    with pytest.raises(
        ValueError,
        match=r"^RenormClippingSchedule needs a model whose optimizer counts its steps, and "
        r"'sequential(_\d+)?' is compiled without one$",
    ):
        schedule.on_train_begin()


@on_one_backend
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rmax": 0.5}, ValueError, "rmax must be a finite number of at least 1.0, got 0.5"),
        ({"dmax": -1}, ValueError, "dmax must be a finite number of at least 0.0, got -1"),
        ({"rmax": "3"}, TypeError, "rmax must be a number, got str"),
        ({"rmax_steps": 5}, TypeError, "rmax_steps must be two steps, first and last, got 5"),
        (
            {"dmax_steps": (7, 5)},
            ValueError,
            "dmax_steps must be two whole numbers, 0 <= first <= last, got (7, 5)",
        ),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error) as caught:
        RenormClippingSchedule(**arguments)
    assert str(caught.value) == message
