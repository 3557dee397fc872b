"""SIGTERM and Ctrl-C, as the process that trains hears them."""

import signal

import pytest

from jaxface.training.stopping import StopRequest

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_the_run_to_stop_and_the_second_stops_it_at_once(number):
    with StopRequest() as request:
        assert request.heard == request.alone == 0
        signal.raise_signal(number)
        assert request.heard == request.alone == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("error", [None, ValueError])
def test_the_handlers_from_before_are_back_afterwards(error):
    before = [signal.signal(number, lambda *_: None) for number in SIGNALS]
    mine = [signal.getsignal(number) for number in SIGNALS]
    try:
        with StopRequest():
            assert all(signal.getsignal(number) is not handler for number, handler in zip(SIGNALS, mine, strict=True))
            if error:
                raise error
    except ValueError:
        pass
    finally:
        after = [signal.signal(number, handler) for number, handler in zip(SIGNALS, before, strict=True)]
    assert all(a is b for a, b in zip(after, mine, strict=True))
