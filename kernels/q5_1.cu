#include "entries.cuh"

FOREBAY_TYPE(q5_1, Q5_1)
