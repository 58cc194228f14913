#include "blended_kl.h"
