#include "entries.cuh"

FOREBAY_TYPE(bf16, BF16)
