"""Checks of `emae doctor`: the images, and whether a training step would wait for them."""

import dataclasses
import json
import math

from efficient_mae.bench.data import BenchDataConfig, bench_data
from efficient_mae.bench.doctor_finding import Finding, Plan, note, ok, problem
from efficient_mae.data import EvalTransform, UnreadableImage, describe_images, open_source, spread
from efficient_mae.data.sources.measure import ReadingSettings, measure_statistics
from efficient_mae.engine.machine.facts import available_cores
from efficient_mae.engine.storage.damage_log import MOST_DAMAGED
from efficient_mae.tasks.pretrain_config import ModelChoice

# Images that are read to see whether they can be.
_READ = 200
_NAMED = 5
# Seconds that the loader is timed.
_SECONDS = 3.0
# Share of its time that a step may wait before there is something to do.
_MUCH_WAITING = 0.05


def check_images(plan: Plan) -> Finding:
    """Some images, spread over the data, read and decoded; and what would be made of them."""
    source = open_source(plan.data or "", "train", plan.choice)
    channels, *size = plan.img_shape
    reading = plan.images.reading(source, channels)
    look = EvalTransform((size[0], size[1]), reading)
    sample, damaged = spread(source, _READ), []
    for index in range(len(sample)):
        try:
            look(sample.open(index))
        except UnreadableImage as error:
            damaged.append(str(error))
    found = f"{len(source):,} images; {len(sample) - len(damaged)} of {len(sample)} that were read are whole"
    made = describe_images(source, reading, look.img_size)
    found += f"; {made.text}"
    advice = []
    if made.enlarged:
        advice.append(
            "what they don't hold is not learned: take a smaller --img_size, with a --model of smaller patches"
        )
    if made.made_up:
        advice.append("--in_chans says how many channels are made of them")
    if not damaged:
        return note(found, "; ".join(advice)) if advice else ok(found)
    found += f"; damaged: {'; '.join(damaged[:_NAMED])}{' ...' if len(damaged) > _NAMED else ''}"
    if len(damaged) > max(1, MOST_DAMAGED * len(sample)):
        return problem(found, f"mend or remove them: a run stops at more than {MOST_DAMAGED:.0%}")
    return note(found, "; ".join(["a run skips and names them", *advice]))


def check_numbers(plan: Plan) -> Finding:
    """What the images' numbers are, as flags that take them into account."""
    source = open_source(plan.data or "", "train", plan.choice)
    given = plan.images
    value_range = given.value_range or "measure"
    asked = ReadingSettings(value_range=value_range, bands=given.bands, max_megapixels=given.max_megapixels)
    reading = asked.reading(source, plan.img_shape[0])
    mean, std = measure_statistics(source, reading)
    flags = {"value_range": reading.value_range, "mean": mean, "std": std}
    text = " ".join(
        f"--{name} '{json.dumps(value).replace(' ', '')}'" for name, value in flags.items() if value is not None
    )
    return ok(f"measured: {text}")


def check_waiting(plan: Plan) -> Finding:
    """The loader's speed of one worker, beside a training step's of the chosen model."""
    images = len(open_source(plan.data or "", "train", plan.choice))
    names = [field.name for field in dataclasses.fields(ModelChoice.of(plan.settings.model))]
    model = {name: getattr(plan.settings, name) for name in names}
    result = bench_data(
        BenchDataConfig(
            data=plan.data or "",
            batch_size=min(plan.batch_size, images),
            num_workers=(1,),
            seconds=_SECONDS,
            device=str(plan.device),
            precision=plan.precision,
            value_range=plan.images.value_range,
            bands=plan.images.bands,
            max_megapixels=plan.images.max_megapixels,
            **model,
            **dataclasses.asdict(plan.choice),
        )
    )
    worker, step = result.loaders[0].images_per_second, result.step_images_per_second
    wait = max(0.0, 1 - max(1, plan.num_workers) * worker / step)
    wanted = math.ceil(step / worker)
    found = (
        f"a worker reads {worker:,.0f} images/s, a step takes {step:,.1f}: "
        f"with {plan.num_workers} workers it waits {wait:.0%} of its time"
    )
    if wait <= _MUCH_WAITING:
        return ok(found)
    advice = f"--num_workers {wanted} would do"
    if wanted > available_cores():
        advice += f", but there are {available_cores()} cores: see --repeats, --decode_device cuda, smaller files"
    return note(found, advice)


IMAGE_CHECKS = {"images": check_images, "numbers": check_numbers, "waiting": check_waiting}
