#include "medoids.h"
