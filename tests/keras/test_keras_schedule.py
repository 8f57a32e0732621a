"""The ramp of renorm's limits."""

import keras
import numpy as np
import pytest
from backends import array, on_one_backend
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
