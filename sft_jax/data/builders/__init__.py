"""One TFDS builder a source, written as ArrayRecord and read without TensorFlow."""

from sft_jax.data.builders.arrays import Arrays
from sft_jax.data.builders.base import SourceBuilder
from sft_jax.data.builders.japanese_vowels import JapaneseVowels
from sft_jax.data.builders.mmsa_pickle import MmsaPickle
from sft_jax.data.builders.mult_pickle import MultPickle
from sft_jax.data.builders.multiple_features import MultipleFeatures
from sft_jax.data.builders.smartwatch_exercises import SmartwatchExercises
from sft_jax.data.builders.synthetic import Synthetic
from sft_jax.data.builders.vggsound_hdf5 import VggsoundHdf5

BUILDERS: dict[str, type[SourceBuilder]] = {
    builder.name: builder
    for builder in (
        SmartwatchExercises,
        MultipleFeatures,
        JapaneseVowels,
        Synthetic,
        Arrays,
        MultPickle,
        MmsaPickle,
        VggsoundHdf5,
    )
}
