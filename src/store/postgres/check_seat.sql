select from seat where epoch = $1 for key share
