#include "entries.cuh"

FOREBAY_TYPE(iq4_xs, IQ4_XS)
