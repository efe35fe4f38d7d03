"""Signatures of callbacks, against the specification's own example, and where their secrets come from."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from random import Random

import pytest

from llmsched.errors import InvalidSetting
from llmsched.runtime.callbacks.delivery import Delivery, event_id
from llmsched.runtime.callbacks.signing import Secrets, sign

#: From the test suite of the Standard Webhooks reference implementations.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def secret(letter: str) -> str:
    return "whsec_" + base64.b64encode(letter.encode() * 32).decode()


def test_the_signature_is_that_of_standard_webhooks() -> None:
    keys = Secrets(SECRET).of("anyone")

    headers = sign(keys, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')

    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_two_secrets_sign_twice_so_that_either_can_be_checked() -> None:
    old, new = (sign(Secrets(s).of(""), "evt_1", 1, b"{}")["webhook-signature"] for s in (SECRET, secret("n")))

    both = sign(Secrets(f"{SECRET},{secret('n')}").of(""), "evt_1", 1, b"{}")

    assert both["webhook-signature"] == f"{old} {new}"


def test_a_tenant_with_a_secret_of_its_own_is_signed_with_that_alone() -> None:
    secrets = Secrets(f"{secret('a')}, ann:{secret('b')}")

    assert secrets.of("ann") == [b"b" * 32]
    assert secrets.of("bob") == [b"a" * 32]
    assert Secrets(f"ann:{secret('b')}").of("bob") == ()


@pytest.mark.parametrize("text", ["secret", "whsec_", "whsec_c2hvcnQ=", f"x{SECRET}", "whsec_" + "é" * 40])
def test_what_is_no_secret_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(InvalidSetting, match="entry 2 of callback_secrets is no secret; it must be whsec_") as caught:
        Secrets(f"{SECRET},{text}")

    assert text in ("whsec_", "secret") or text not in str(caught.value)
    assert caught.value.field == "callback_secrets"


def test_a_file_is_read_again_when_it_changes_and_kept_when_it_cannot_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "secrets"

    def write(text: str, at: int) -> None:
        file.write_text(text)
        os.utime(file, (at, at))

    write(f"{secret('a')}\n", 1)
    secrets = Secrets(file=file)
    assert secrets.of("") == [b"a" * 32]
    write(f"{secret('a')}\n\n{secret('b')}\n", 2)
    assert secrets.of("") == [b"a" * 32, b"b" * 32]
    write("nonsense", 3)
    assert secrets.of("") == [b"a" * 32, b"b" * 32]
    assert [r.message for r in caplog.records if r.levelname == "ERROR"] == ["callback secrets stay as they were"]
    file.unlink()
    assert secrets.of("") == [b"a" * 32, b"b" * 32]
    write(secret("c"), 4)
    assert secrets.of("") == [b"c" * 32]


def test_a_file_that_is_not_there_is_a_bad_setting(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"callback_secrets_file is .* which cannot be read: No such file"):
        Secrets(file=tmp_path / "nothing")


def test_waits_double_up_to_a_bound_and_are_up_to_half_shorter() -> None:
    delivery = Delivery(backoff_first=5.0, backoff_most=60.0)
    longest = [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]

    waits = [[delivery.wait(n, Random(seed)) for seed in range(200)] for n in range(1, 7)]

    assert all(most / 2 <= wait <= most for most, some in zip(longest, waits, strict=True) for wait in some)
    assert all(max(some) - min(some) > 0.4 * most for most, some in zip(longest, waits, strict=True))
    assert delivery.wait(10**6, Random(0)) <= 60.0


def test_the_id_of_a_message_is_that_of_its_job() -> None:
    assert event_id("job_01m7y7nf5pk8qby37hnf") == "evt_01m7y7nf5pk8qby37hnf"
