select clock from seat
