"""Several training sets in one run: which ones an iteration takes, and the exact place in each."""

import itertools

import numpy as np
import pytest

from dataset.data import Data, DataConfig
from dataset.files import DataError
from dataset.loader import Loader
from dataset.parallel_text import ParallelTexts
from dataset.pretrain import CaptionedImages
from dataset.streams import StreamConfig, StreamLoader, check_streams, choose_streams
from tests.dataset.toy import preprocessing, write_lines
from tests.toy_ccrk import TOKENIZER


def stream(path="pairs.data", **settings):
    return StreamConfig(train=ParallelTexts.Config(files=[str(path)]), **settings)


STREAMS = {
    "parallel": stream(probability=0.7),
    "regions": stream(probability=0.5, replaces_image=True),
    "mono": stream(probability=0.3),
}


def test_streams_are_chosen_with_their_probabilities_and_one_of_images_and_regions_always():
    chosen = [choose_streams(STREAMS, 3, iteration) for iteration in range(1, 4001)]
    shares = {name: np.mean([name in each for each in chosen]) for name in (*STREAMS, "image")}
    assert shares == pytest.approx({"parallel": 0.7, "regions": 0.5, "mono": 0.3, "image": 0.5}, abs=0.03)
    assert all(("regions" in each) != ("image" in each) for each in chosen)
    together = np.mean(["parallel" in each and "mono" in each for each in chosen])
    assert together == pytest.approx(0.21, abs=0.03)  # independent draws


def test_the_order_is_other_streams_then_regions_then_images_and_the_first_iteration_has_both():
    always = {"parallel": stream(), "regions": stream(probability=0.5, replaces_image=True), "mono": stream()}
    assert choose_streams(always, 0, 0) == ["parallel", "mono", "regions", "image"]
    assert {tuple(choose_streams(always, 0, k)) for k in range(1, 30)} == {
        ("parallel", "mono", "regions"),
        ("parallel", "mono", "image"),
    }


def test_the_choice_depends_on_seed_and_iteration_alone():
    first, again, other = ([choose_streams(STREAMS, seed, k) for k in range(50)] for seed in (3, 3, 4))
    assert first == again != other


def toy_loader(tmp_path, probability=0.6):
    """Images are stood in for by pairs, too: the loader does not look at them."""
    streams = {
        "parallel": stream(probability=probability, batch_size=3),
        "regions": stream(probability=0.5, replaces_image=True, batch_size=2),
    }
    loaders = {}
    for k, (name, size) in enumerate({"image": 4, "parallel": 3, "regions": 2}.items()):
        lines = [{"source_text": f"{name} {n}", "target_text": f"{name} {n}"} for n in range(8 + k)]
        config = ParallelTexts.Config(files=[write_lines(tmp_path / f"{name}.data", lines)])
        loaders[name] = Loader(CountingTexts(config, preprocessing()), batch_size=size, seed=k, drop_last=False)
    return StreamLoader(loaders, streams, seed=5)


class CountingTexts(ParallelTexts):
    num_sampled = 0

    def sample(self, index, generator):
        self.num_sampled += 1
        return super().sample(index, generator)


def forever(loader):
    while True:
        yield from loader


def contents(batches):
    return [(batch.stream, batch.first.ids.tolist()) for batch in batches]


def test_every_batch_carries_the_name_of_its_stream(tmp_path):
    loader = toy_loader(tmp_path)
    for iteration, batches in enumerate(itertools.islice(forever(loader), 12)):
        assert [batch.stream for batch in batches] == choose_streams(loader.streams, 5, iteration)
        assert all(len(batch.first) <= loader.loaders[batch.stream].batch_size for batch in batches)


def test_an_epoch_has_as_many_iterations_as_batches_of_images(tmp_path):
    loader = toy_loader(tmp_path)
    assert [len(list(loader)) for _ in range(3)] == [2, 2, 2]


def test_only_batches_that_are_used_are_made(tmp_path):
    loader, used = toy_loader(tmp_path), dict.fromkeys(("image", "parallel", "regions"), 0)
    for batches in itertools.islice(forever(loader), 20):
        for batch in batches:
            used[batch.stream] += len(batch.first)
    assert {name: each.dataset.num_sampled for name, each in loader.loaders.items()} == used
    assert used["image"] < 20 * 4


@pytest.mark.parametrize("done", [0, 1, 2, 7, 13])
def test_a_state_goes_on_with_exactly_the_batches_that_were_left(tmp_path, done):
    whole = [contents(batches) for batches in itertools.islice(forever(toy_loader(tmp_path)), done + 9)]
    first = toy_loader(tmp_path)
    for _ in itertools.islice(forever(first), done):
        pass
    second = toy_loader(tmp_path)
    second.load_state_dict(first.state_dict())
    assert [contents(batches) for batches in itertools.islice(forever(second), 9)] == whole[done:]


def test_a_state_of_other_streams_is_refused(tmp_path):
    loader = toy_loader(tmp_path)
    state = loader.state_dict()
    del state["loaders"]["regions"]
    with pytest.raises(DataError, match="with the streams image, parallel; now there are image, parallel, regions"):
        loader.load_state_dict(state)
    with pytest.raises(DataError, match="saved with several streams; now there is one"):
        loader.loaders["image"].load_state_dict(state)


def make_data(tmp_path, streams):
    lines = [{"caption": {"en": f"dog {n}"}, "image_path": "a.png"} for n in range(4)]
    train = CaptionedImages.Config(files=[write_lines(tmp_path / "images.data", lines)])
    config = DataConfig(tokenizer=str(TOKENIZER), train=train, batch_size=2, cache_dir="")
    return Data(config, image_size=8, seed=0, streams=streams)


def test_files_of_a_stream_without_probability_are_not_even_looked_for(tmp_path):
    data = make_data(tmp_path, {"parallel": stream(tmp_path / "absent.data", probability=0)})
    data.check(("train",))
    assert list(data.train_loader().loaders) == ["image"]
    with pytest.raises(FileNotFoundError, match="absent.data: no such data file"):
        make_data(tmp_path, {"parallel": stream(tmp_path / "absent.data")}).check(("train",))


def test_streams_are_shuffled_apart(tmp_path):
    path = write_lines(tmp_path / "p.data", [{"source_text": f"a {n}", "target_text": f"b {n}"} for n in range(9)])
    loader = make_data(tmp_path, {"one": stream(path), "two": stream(path)}).train_loader()
    orders = [loader.loaders[name].order(0).tolist() for name in ("one", "two")]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        ({"image": stream()}, "'image' is the name of data.train"),
        ({"a/b": stream()}, "must not be empty or hold '/', found 'a/b'"),
        (
            {name: stream(probability=0.6, replaces_image=True) for name in "ab"},
            "are 1.2 together, allowed at most 1",
        ),
    ],
)
def test_wrong_streams_are_told(streams, message):
    with pytest.raises(ValueError, match=message):
        check_streams(streams)


def test_a_probability_beyond_one_is_told():
    with pytest.raises(ValueError, match=r"probability must be in \[0, 1\], found 2"):
        stream(probability=2)
