update seat set holder = '' where holder = $1
