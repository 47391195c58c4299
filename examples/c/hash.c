#include "words.h"

/* FNV-1a */
unsigned long hash(const char *s, size_t len)
{
	unsigned long h = 14695981039346656037UL;

	while (len--) {
		h ^= (unsigned char)*s++;
		h *= 1099511628211UL;
	}
	return h;
}
