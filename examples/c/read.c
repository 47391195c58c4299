#include <ctype.h>
#include <errno.h>

#include "words.h"

int read_words(FILE *in, struct table *t)
{
	char word[256];
	size_t len = 0;
	int c;

	while ((c = getc(in)) != EOF) {
		if (isalpha(c)) {
			if (len < sizeof word)
				word[len++] = tolower(c);
			continue;
		}
		if (len && table_add(t, word, len))
			return ENOMEM;
		len = 0;
	}
	if (len && table_add(t, word, len))
		return ENOMEM;
	return ferror(in) ? EIO : 0;
}
